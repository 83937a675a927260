"""The pictures of the sales example, from its two result tables alone."""

import matplotlib.dates as dates
import matplotlib.ticker as ticker

from lib.plot import plt, save


def draw(postgres, folder):
    """Writes revenue.png and products.png."""
    months = postgres.frame("SELECT month, store, sum(revenue)::float8 / 1e6 AS millions FROM sales_by_month GROUP BY 1, 2 ORDER BY 1")
    figure, axes = plt.subplots()
    for store, rows in months.groupby("store"):
        axes.plot(rows["month"], rows["millions"], marker=".", label=store)
    axes.set(title="Revenue by month and store", xlabel="month of sale", ylabel="revenue, millions")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(dates.MonthLocator([1, 7]))
    # In the order of the lines.
    handles, labels = axes.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda line: -max(handles[line].get_ydata()))
    axes.legend([handles[line] for line in order], [labels[line] for line in order], frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    save(figure, folder, "revenue")

    products = postgres.frame("SELECT product, revenue::float8 / 1e6 AS millions FROM sales_by_product ORDER BY revenue DESC LIMIT 15")
    figure, axes = plt.subplots()
    axes.barh(products["product"][::-1], products["millions"][::-1])
    axes.set(title="The 15 products that sell for the most", xlabel="revenue, millions")
    axes.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,.0f}"))
    axes.grid(axis="y", visible=False)
    save(figure, folder, "products")
