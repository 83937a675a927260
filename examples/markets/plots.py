"""The pictures of the markets example, from its result tables alone."""

import squarify
from matplotlib import dates

from lib.plot import COLOURS, plt, save

COLOUR = {"bitcoin": COLOURS[1], "ethereum": COLOURS[0], "solana": COLOURS[3], "cardano": COLOURS[2]}


def draw(postgres, folder):
    """Writes posts.png, coins.png and treemap.png."""
    prices = postgres.frame("SELECT * FROM coin_prices ORDER BY last_updated")
    posts = postgres.frame("SELECT * FROM posts_per_hour WHERE window_start >= (SELECT date_trunc('hour', min(last_updated)) FROM coin_prices) ORDER BY 1")

    figure, left = plt.subplots()
    right = left.twinx()
    bitcoin = prices[prices["id"] == "bitcoin"]
    left.plot(bitcoin["last_updated"], bitcoin["price"], color=COLOUR["bitcoin"], label="bitcoin", zorder=3)
    right.bar(posts["window_start"], posts["posts"], width=1 / 24, align="edge", color=COLOURS[4], alpha=0.4, label="posts an hour")
    left.set(title="The price of bitcoin, and how much is posted", xlabel="time (UTC)", ylabel="price, US dollars")
    right.set_ylabel("posts an hour")
    right.grid(visible=False)
    left.set_zorder(right.get_zorder() + 1)
    left.patch.set_visible(False)
    left.xaxis.set_major_formatter(dates.ConciseDateFormatter(left.xaxis.get_major_locator()))
    figure.legend(loc="upper right", bbox_to_anchor=(0.9, 0.88), frameon=False)
    save(figure, folder, "posts")

    figure, axes = plt.subplots()
    for coin, rows in prices.groupby("id"):
        axes.plot(rows["last_updated"], rows["price"] / rows["price"].iloc[0] * 100, label=coin, color=COLOUR[coin])
    axes.set(title="Four coins, first price = 100", xlabel="time (UTC)", ylabel="price, % of the first")
    axes.xaxis.set_major_formatter(dates.ConciseDateFormatter(axes.xaxis.get_major_locator()))
    axes.legend(frameon=False, ncols=4)
    save(figure, folder, "coins")

    # Three levels: the coin by what was traded, within it the hour, and its mean price as text.
    last_day = postgres.frame(
        "SELECT id, date_trunc('hour', last_updated) AS hour, avg(price) AS price, sum(total_volume)::float8 AS volume FROM coin_prices"
        " WHERE last_updated > (SELECT max(last_updated) FROM coin_prices) - INTERVAL '24 hours' GROUP BY 1, 2 ORDER BY 1, 2"
    )
    totals = last_day.groupby("id")["volume"].sum().sort_values(ascending=False)
    figure, axes = plt.subplots(figsize=(9, 6))
    boxes = squarify.squarify(squarify.normalize_sizes(totals, 100, 60), 0, 0, 100, 60)
    for coin, box in zip(totals.index, boxes):
        hours = last_day[last_day["id"] == coin].sort_values("volume", ascending=False)
        band = min(4, box["dy"] / 4)
        inner = squarify.squarify(squarify.normalize_sizes(hours["volume"], box["dx"], box["dy"] - band), box["x"], box["y"], box["dx"], box["dy"] - band)
        low, high = hours["price"].min(), hours["price"].max()
        for (_, hour), cell in zip(hours.iterrows(), inner):
            shade = 0.25 + 0.6 * ((hour["price"] - low) / (high - low) if high > low else 0.5)
            axes.add_patch(plt.Rectangle((cell["x"], cell["y"]), cell["dx"], cell["dy"], facecolor=COLOUR[coin], alpha=shade, edgecolor="white", linewidth=1))
            if cell["dx"] > 5 and cell["dy"] > 3.5:
                text = f"{hour['hour']:%H}h\n{hour['price']:,.0f}" if hour["price"] >= 100 else f"{hour['hour']:%H}h\n{hour['price']:.3g}"
                axes.text(cell["x"] + cell["dx"] / 2, cell["y"] + cell["dy"] / 2, text, ha="center", va="center", fontsize=7)
        axes.add_patch(plt.Rectangle((box["x"], box["y"]), box["dx"], box["dy"], fill=False, edgecolor="black", linewidth=1.5))
        axes.text(box["x"] + 0.6, box["y"] + box["dy"] - band / 2, coin, va="center", fontsize=10, weight="bold")
    axes.set(xlim=(0, 100), ylim=(0, 60), title="The last 24 hours: coin (area: volume), hour (area: volume; darker: dearer), mean price in dollars")
    axes.title.set_fontsize(10)
    axes.axis("off")
    save(figure, folder, "treemap")
