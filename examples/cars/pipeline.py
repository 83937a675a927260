"""Cars and news: a file played as a stream and a polled API into two topics, and one job that joins what is in both."""

import json
import os
from contextlib import nullcontext
from datetime import datetime, timezone

import check as expected
from cars import BRANDS, write
from lib.example import keep, main
from lib.servers.news import News
from plots import draw

CARS, CARS_SHORT = 20_000, 4_000


def news_server(run):
    """The local server; none if ESSAIM_VAR_NEWS names a real one."""
    if os.environ.get("ESSAIM_VAR_NEWS"):
        return nullcontext(None)
    return News(period=0.05, start=datetime.now(timezone.utc), limit=(10, 1))


def prepare(run, server):
    """The file, the table of makers, the topics, the variables."""
    count = CARS_SHORT if run.short else CARS
    path = run.work / "cars.csv"
    write(path, count)
    run.postgres.execute("CREATE TABLE brands (brand text PRIMARY KEY, country text NOT NULL)")
    for brand, country, _, _ in BRANDS:
        run.postgres.execute("INSERT INTO brands VALUES (%s, %s)", [brand, country])
    topics = run.topic("used_cars"), run.topic("car_news")
    run.kafka.create(*topics)
    run.variables |= {"ESSAIM_VAR_CARS": str(path), "ESSAIM_VAR_CARS_TOPIC": topics[0], "ESSAIM_VAR_NEWS_TOPIC": topics[1]}
    if server is None:
        names = ("ESSAIM_VAR_NEWS", "ESSAIM_VAR_NEWS_ID", "ESSAIM_VAR_NEWS_KEY")
        run.variables |= {name: os.environ[name] for name in names} | {"ESSAIM_VAR_NEWS_INTERVAL": "30 seconds"}
    else:
        run.variables |= {"ESSAIM_VAR_NEWS": server.url, "ESSAIM_VAR_NEWS_ID": server.application, "ESSAIM_VAR_NEWS_KEY": server.key}
        run.variables |= {"ESSAIM_VAR_NEWS_INTERVAL": "300 milliseconds"}
    with open(path) as file:
        return sum(1 for line in file) - 1, topics


def stream(run, cluster, rows, topics):
    """Runs both jobs until the file has been played, and kills a worker and the master meanwhile."""
    cluster.submit(run.folder / "stream.sql", name="stream")
    cluster.submit(run.folder / "ingest.sql", name="ingest")
    cluster.wait_for_rows("ingest", rows / 3)
    cluster.crash_worker()
    run.say("killed a worker")
    cluster.wait_for_rows("ingest", rows * 2 / 3)
    cluster.crash_master()
    run.say("killed the master")
    priced = sum(1 for line in open(run.variables["ESSAIM_VAR_CARS"]) if line.split(",")[3] not in ("", "price"))
    cluster.until("the whole file in the topic", lambda: len(run.kafka.read(topics[0])) >= priced, "ingest", "stream")
    cluster.stop("ingest")
    records = [run.kafka.read(topic) for topic in topics]
    cluster.wait_for_rows("stream", sum(map(len, records)))
    cluster.stop("stream")
    run.say(f"{len(records[0]):,} cars and {len(records[1]):,} stories have come through")
    return records


def check(run, server, cluster, records):
    """Compares what came with what was sent, and the tables with what pandas makes of the topics."""
    cars, news = expected.used_cars(records[0]), expected.stories(records[1])
    if server is not None:
        sent = sorted((number + 5_000_000_000) for number in range(len(records[1])))
        run.check("the topic has the first stories, each once", sorted(json.loads(value)["id"] for _, _, _, value in records[1]), sent)
    query = run.postgres.query
    run.check("prices", query('SELECT * FROM prices ORDER BY window_start, brand COLLATE "C"'), expected.prices(cars))
    run.check("mentions", query('SELECT * FROM mentions ORDER BY window_start, brand COLLATE "C"'), expected.mentions(news))
    countries = {brand: country for brand, country, _, _ in BRANDS}
    run.check("prices_by_country", query('SELECT * FROM prices_by_country ORDER BY country COLLATE "C", fuel COLLATE "C"'), expected.by_country(cars, countries))
    # A join of windows tells of those that have closed: before the watermark.
    inserts = cluster.status("stream")["last_epoch"]["queries"]
    watermark = next(insert["watermark_at"] for insert in inserts if insert["sink"] == "attention")
    watermark = datetime.fromisoformat(watermark.removesuffix("Z"))
    closed = [row for row in expected.attention(cars, news) if (watermark - row[0]).total_seconds() >= 2]
    run.check(f"attention, {len(closed)} windows that have closed", query('SELECT * FROM attention ORDER BY window_start, brand COLLATE "C"'), closed)


def pipeline(run):
    run.services()
    with news_server(run) as server:
        rows, topics = prepare(run, server)
        with run.cluster() as cluster:
            records = stream(run, cluster, rows, topics)
            check(run, server, cluster, records)
            draw(run.postgres, run.plots)
            keep(run, cluster)
    return f"{len(records[0]):,} cars, {len(records[1]):,} stories, a worker and the master killed meanwhile"


if __name__ == "__main__":
    main("cars", pipeline)
