"""The pictures of the weather example, from its result tables alone."""

from lib.plot import COLOURS, plt, save


def draw(postgres, folder):
    """Writes map.png, scatter.png and correlations.png."""
    cities = postgres.frame("SELECT * FROM weather_by_city WHERE source = 'mongodb' ORDER BY city")
    numbers = [name for name in cities.columns if name not in ("source", "city")]
    cities[numbers] = cities[numbers].astype(float)

    figure, axes = plt.subplots(figsize=(8, 6))
    points = axes.scatter(cities["longitude"], cities["latitude"], c=cities["mean_temperature"], cmap="coolwarm", s=160, edgecolor="black", linewidth=0.5, zorder=2)
    for _, city in cities.iterrows():
        # Elsewhere where another city is near.
        place = {"London": {"xytext": (-8, 6), "ha": "right"}, "Stockholm": {"xytext": (0, -16), "ha": "center"}}.get(city["city"], {"xytext": (8, 6)})
        axes.annotate(city["city"], (city["longitude"], city["latitude"]), textcoords="offset points", fontsize=8, **place)
    # A degree of longitude is shorter than one of latitude, by about a half in the middle of the map.
    axes.set_aspect(1.6)
    axes.set(title="Mean temperature", xlabel="longitude, degrees east", ylabel="latitude, degrees north")
    axes.margins(0.1)
    figure.colorbar(points, label="°C", shrink=0.8)
    save(figure, folder, "map")

    figure, (left, right) = plt.subplots(1, 2)
    left.scatter(cities["mean_temperature"], cities["mean_humidity"], color=COLOURS[0])
    left.set(title="Colder is damper", xlabel="mean temperature, °C", ylabel="mean humidity, %")
    right.scatter(cities["latitude"], cities["mean_temperature"], color=COLOURS[5])
    right.set(title="and further north", xlabel="latitude, degrees north", ylabel="mean temperature, °C")
    save(figure, folder, "scatter")

    pairs = postgres.frame("SELECT x, y, correlation FROM correlations WHERE source = 'mongodb'")
    table = pairs.pivot(index="x", columns="y", values="correlation").astype(float)
    figure, axes = plt.subplots(figsize=(7.5, 6))
    image = axes.imshow(table, cmap="coolwarm", vmin=-1, vmax=1)
    axes.set_xticks(range(len(table.columns)), table.columns, rotation=35, ha="right")
    axes.set_yticks(range(len(table.index)), table.index)
    for row in range(len(table.index)):
        for column in range(len(table.columns)):
            value = table.iloc[row, column]
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color="white" if abs(value) > 0.6 else "black")
    axes.grid(visible=False)
    axes.set_title("Correlation of all pairs")
    figure.colorbar(image, label="correlation", shrink=0.8)
    save(figure, folder, "correlations")
