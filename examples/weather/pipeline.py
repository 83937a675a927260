"""Weather: a polled API into a topic, the topic whole into MongoDB, and the same questions asked of both."""

import json
import math
import os
from contextlib import nullcontext

import pymongo

import check as expected
from lib import services
from lib.example import keep, main
from lib.servers.weather import CITIES, Weather, measurement
from plots import draw

# Measurements of each city.
EACH, EACH_SHORT = 40, 12


def api(run):
    """The local server; none if ESSAIM_VAR_WEATHER names a real one."""
    if os.environ.get("ESSAIM_VAR_WEATHER"):
        return nullcontext(None)
    # A new measurement every half a second; more than 60 requests a second are refused for a while.
    return Weather(period=0.5, limit=(60, 1))


def prepare(run, server):
    """The table of regions, the topic, the collection, the variables."""
    run.postgres.execute("CREATE TABLE regions (city text PRIMARY KEY, region text NOT NULL)")
    for name, _, region, *_ in CITIES:
        run.postgres.execute("INSERT INTO regions VALUES (%s, %s)", [name, region])
    topic = run.topic("weather")
    run.kafka.create(topic)
    url = services.mongodb(f"essaim_{run.label}")
    client = pymongo.MongoClient(url, serverSelectionTimeoutMS=20_000)
    client.drop_database(client.get_default_database().name)
    run.variables |= {"ESSAIM_VAR_TOPIC": topic, "ESSAIM_VAR_MONGODB": url}
    if server is None:
        run.variables |= {name: os.environ[name] for name in ("ESSAIM_VAR_WEATHER", "ESSAIM_VAR_WEATHER_KEY")}
        run.variables |= {"ESSAIM_VAR_WEATHER_INTERVAL": "1 minute"}
    else:
        run.variables |= {"ESSAIM_VAR_WEATHER": server.url, "ESSAIM_VAR_WEATHER_KEY": server.key, "ESSAIM_VAR_WEATHER_INTERVAL": "250 milliseconds"}
    return topic, client.get_default_database()["observations"]


def stream(run, cluster, server, topic, collection):
    """Runs both streaming jobs until there are enough measurements, and kills a worker and the master meanwhile."""
    wanted = (EACH_SHORT if run.short else EACH) * len(CITIES)
    cluster.submit(run.folder / "store.sql", name="store")
    cluster.submit(run.folder / "ingest.sql", name="ingest")
    stored = lambda: collection.count_documents({})  # noqa: E731
    # Real cities measure every ten minutes.
    patience = 300 if server else 12 * 3600
    cluster.until("a third of the measurements", lambda: stored() >= wanted / 3, "ingest", "store", seconds=patience)
    cluster.crash_worker()
    run.say("killed a worker")
    cluster.until("two thirds of the measurements", lambda: stored() >= wanted * 2 / 3, "ingest", "store", seconds=patience)
    cluster.crash_master()
    run.say("killed the master")
    cluster.until("all measurements", lambda: stored() >= wanted, "ingest", "store", seconds=patience)
    cluster.stop("ingest")
    messages = [json.loads(value) for _, _, _, value in run.kafka.read(topic)]
    cluster.wait_for_rows("store", len(messages))
    cluster.stop("store")
    run.say(f"{len(messages):,} measurements have come through")
    return messages


def without_nothing(value):
    """A document without fields that say nothing, at any depth."""
    if isinstance(value, dict):
        return {name: without_nothing(field) for name, field in value.items() if field is not None}
    return [without_nothing(item) for item in value] if isinstance(value, list) else value


def check(run, server, cluster, messages, collection):
    """Compares topic, collection and tables with each other and with what the server gave."""
    place = lambda message: (message["name"], message["dt"])  # noqa: E731
    if server is not None:
        given = {}
        for city in CITIES:
            for number in (number for name, number in server.served if name == city[0]):
                message = measurement(city, number)
                left_out = ("base", "cod")
                message["weather"] = [{name: item[name] for name in ("id", "main", "description")} for item in message["weather"]]
                given[place(message)] = {name: value for name, value in message.items() if name not in left_out}
        run.check("each message is one that the server gave", [m for m in messages if given.get(place(m)) != m], [])
        run.check("no measurement is in the topic twice", len({place(message) for message in messages}), len(messages))
        run.check("the server has refused some requests", server.limit.refused > 0, True)
    documents = [without_nothing({name: value for name, value in document.items() if name != "_id"}) for document in collection.find()]
    run.check("MongoDB has every message whole", sorted(documents, key=place), sorted(messages, key=place))

    # One city's, with the filter pushed down.
    table = f"CREATE EXTERNAL TABLE o (name VARCHAR, dt BIGINT) STORED AS MONGODB LOCATION '{run.variables['ESSAIM_VAR_MONGODB']}' OPTIONS (collection 'observations')"
    of_paris = cluster.sql(table, "SELECT count(*) AS n, max(dt) AS dt FROM o WHERE name = 'Paris'")
    paris = [message["dt"] for message in messages if message["name"] == "Paris"]
    run.check("the measurements of Paris", of_paris, [{"n": len(paris), "dt": max(paris)}])

    rows = expected.measured(messages, {city[0]: city[2] for city in CITIES})
    for source in ("topic", "mongodb"):
        of = lambda what, order: run.postgres.query(f'SELECT {what} WHERE source = %s ORDER BY {order} COLLATE "C"', [source])  # noqa: E731
        found = of("region, measurements, mean_humidity, mean_temperature, cities_with_rain, cities_with_snow FROM weather_by_region", "region")
        run.check(f"weather_by_region from {source}", found, expected.by_region(rows))
        found = of("city, longitude, latitude, measurements, mean_temperature, mean_humidity, mean_wind, rain, snow FROM weather_by_city", "city")
        run.check(f"weather_by_city from {source}", found, expected.by_city(rows))
        pairs = {(x, y): value for x, y, value in of("x, y, correlation FROM correlations", "x")}
        wrong = {
            pair: (pairs.get(pair), value)
            for pair, value in expected.correlations(rows).items()
            # Floats: their sums depend on the order of rows in the last digits. Of a number that never changes there is none.
            if not (math.isnan(value) and pairs.get(pair) is None) and not math.isclose(pairs.get(pair) or math.nan, value, rel_tol=1e-9, abs_tol=1e-9)
        }
        run.check(f"correlations from {source}, {len(pairs)} pairs", wrong, {})


def pipeline(run):
    run.services()
    with api(run) as server:
        topic, collection = prepare(run, server)
        with run.cluster() as cluster:
            messages = stream(run, cluster, server, topic, collection)
            cluster.submit(run.folder / "analyse.sql", name="analyse", wait=True)
            check(run, server, cluster, messages, collection)
            draw(run.postgres, run.plots)
            keep(run, cluster)
    return f"{len(messages):,} measurements of {len(CITIES)} cities, a worker and the master killed meanwhile"


if __name__ == "__main__":
    main("weather", pipeline)
