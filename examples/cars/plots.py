"""The pictures of the cars example, from its result tables alone."""

from lib.plot import COLOURS, plt, save


def draw(postgres, folder):
    """Writes prices.png, attention.png and countries.png."""
    prices = postgres.frame(
        "SELECT date_trunc('second', window_start) AS second, brand, (sum(mean * cars) / sum(cars))::float8 / 1000 AS mean"
        " FROM prices GROUP BY 1, 2 ORDER BY 1"
    )
    begin = prices["second"].min()
    figure, axes = plt.subplots()
    for brand, rows in prices.groupby("brand"):
        axes.plot((rows["second"] - begin).dt.total_seconds(), rows["mean"].rolling(5, min_periods=1).mean(), label=brand)
    axes.set(title="What listed cars cost, mean of five seconds", xlabel="seconds since the first car", ylabel="price, thousands")
    axes.set_ylim(bottom=0)
    axes.legend(ncols=4, frameon=False, loc="lower center")
    save(figure, folder, "prices")

    attention = postgres.frame(
        "SELECT brand, sum(mentions)::int AS mentions, (sum(mean * cars) / sum(cars))::float8 / 1000 AS mean, sum(cars)::int AS cars FROM attention GROUP BY 1 ORDER BY 1"
    )
    figure, axes = plt.subplots()
    axes.scatter(attention["mentions"], attention["mean"], s=attention["cars"] / attention["cars"].max() * 300, color=COLOURS[0], alpha=0.7)
    for _, row in attention.iterrows():
        axes.annotate(row["brand"], (row["mentions"], row["mean"]), xytext=(9, 6), textcoords="offset points")
    axes.set(title="Makers in the news, and what their cars cost (size: cars listed)", xlabel="mentions", ylabel="mean price, thousands")
    axes.margins(0.12)
    save(figure, folder, "attention")

    countries = postgres.frame("SELECT country, fuel, mean::float8 / 1000 AS mean FROM prices_by_country ORDER BY 1, 2")
    table = countries.pivot(index="country", columns="fuel", values="mean")
    figure, axes = plt.subplots()
    table.plot.bar(ax=axes, rot=0, width=0.8)
    axes.set(title="Mean price by the maker's country and by fuel", xlabel="", ylabel="price, thousands")
    axes.legend(ncols=4, frameon=False, title=None, loc="upper center", bbox_to_anchor=(0.5, -0.08))
    axes.grid(axis="x", visible=False)
    save(figure, folder, "countries")
