"""The pictures of the devices example, from the merged CSV alone."""

import pandas

from lib.plot import COLOURS, plt, save

STATUSES = ["SUCCESS", "STANDBY", "ERROR", "none"]


def draw(merged, folder):
    """Writes temperatures.png and rates.png."""
    readings = pandas.read_csv(merged, parse_dates=["event_time"])
    readings["status"] = readings["status"].fillna("none")

    figure, axes = plt.subplots()
    bins = range(int(readings["temperature"].min()), int(readings["temperature"].max()) + 2)
    by_status = [readings.loc[readings["status"] == status, "temperature"] for status in STATUSES]
    axes.hist(by_status, bins=bins, stacked=True, label=STATUSES, color=COLOURS[: len(STATUSES)], align="left")
    axes.set(title="Readings by temperature and status", xlabel="temperature, °C", ylabel="readings")
    axes.legend(title="status", frameon=False)
    save(figure, folder, "temperatures")

    seconds = readings["event_time"].dt.floor("s")
    since = (seconds - seconds.min()).dt.total_seconds()
    # The first and the last second are not whole.
    counts = readings.groupby([since, "status"]).size().unstack(fill_value=0).iloc[1:-1]
    figure, axes = plt.subplots()
    for status, colour in zip(STATUSES, COLOURS):
        if status in counts:
            axes.plot(counts.index, counts[status], label=status, color=colour)
    axes.set(title="Readings a second, by the time of the event", xlabel="seconds since the first event", ylabel="readings a second")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 0.45))
    save(figure, folder, "rates")
