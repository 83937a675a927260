"""The pictures of the Mastodon example, from its result tables alone."""

from matplotlib import dates

from lib.plot import COLOURS, plt, save


def draw(postgres, folder):
    """Writes days.png, hashtags.png, windows.png and users.png."""
    days = postgres.frame("SELECT day, toots, avg_length FROM toots_per_day ORDER BY day")
    figure, axes = plt.subplots()
    axes.bar(days["day"], days["toots"], width=0.8, color=COLOURS[0])
    axes.set(title="Toots per day, without those that were deleted", xlabel="day (UTC)", ylabel="toots")
    axes.xaxis.set_major_formatter(dates.DateFormatter("%d %b"))
    axes.grid(axis="x", visible=False)
    save(figure, folder, "days")

    tags = postgres.frame("SELECT hashtag, toots FROM top_hashtags ORDER BY toots DESC, hashtag")
    figure, axes = plt.subplots()
    bars = axes.barh(("#" + tags["hashtag"])[::-1], tags["toots"][::-1], color=COLOURS[2])
    axes.bar_label(bars, padding=3)
    axes.set(title="The ten most frequent hashtags", xlabel="toots")
    axes.grid(axis="y", visible=False)
    save(figure, folder, "hashtags")

    windows = postgres.frame("SELECT window_start, toots, avg_length FROM toots_time_window_aggregates ORDER BY 1")
    figure, axes = plt.subplots()
    axes.plot(windows["window_start"], windows["toots"], color=COLOURS[0], linewidth=1.2)
    axes.set(title="Toots per window of one hour", xlabel="start of the window (UTC)", ylabel="toots")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_formatter(dates.ConciseDateFormatter(axes.xaxis.get_major_locator()))
    save(figure, folder, "windows")

    users = postgres.frame("SELECT username, toots, avg_length FROM user_avg_length ORDER BY toots DESC, username LIMIT 15")
    figure, (left, right) = plt.subplots(1, 2, sharey=True)
    left.barh(users["username"][::-1], users["toots"][::-1], color=COLOURS[0])
    left.set(title="The 15 who write most", xlabel="toots")
    right.barh(users["username"][::-1], users["avg_length"][::-1], color=COLOURS[1])
    right.set(title="and how much at a time", xlabel="average length, characters")
    for axes in (left, right):
        axes.grid(axis="y", visible=False)
    save(figure, folder, "users")
