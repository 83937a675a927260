"""Mastodon: a timeline into a topic, the topic into four tables as it comes, and what the toots of all days say, in batch."""

import json
import os
import time
from contextlib import nullcontext

from check import Toots, comparable, ingested
from lib.example import keep, main
from lib.servers.mastodon import Mastodon
from lib.wait import until
from plots import draw

TOOTS, TOOTS_SHORT, PER_SECOND = 6000, 1500, 300
# How long a real server is listened to, seconds.
LISTEN = 120


def timeline(run):
    """The local server; none if ESSAIM_VAR_MASTODON names a real one."""
    if os.environ.get("ESSAIM_VAR_MASTODON"):
        return nullcontext(None)
    # Two tables listen: to updates and to deletions.
    return Mastodon(TOOTS_SHORT if run.short else TOOTS, PER_SECOND, clients=2)


def stream(run, cluster, server):
    """Runs both streaming jobs until everything sent has come through, and kills a worker and the master meanwhile."""
    cluster.submit(run.folder / "stream.sql", name="stream")
    cluster.submit(run.folder / "ingest.sql", name="ingest")
    if server is None:
        run.say(f"listening for {LISTEN} s")
        time.sleep(LISTEN)
        cluster.stop("ingest")
        expected = len(run.kafka.read(run.variables["ESSAIM_VAR_TOPIC"]))
    else:
        until("the stream to set off", lambda: server.started)
        until("a third of the events", lambda: server.sent() >= len(server.events) / 3)
        cluster.crash_worker()
        run.say("killed a worker")
        until("two thirds of the events", lambda: server.sent() >= len(server.events) * 2 / 3)
        cluster.crash_master()
        run.say("killed the master")
        messages, deleted = ingested(server.events)
        expected = len(messages)
        cluster.until("all deletions", lambda: run.postgres.query("SELECT count(*) FROM deleted_toots") == [(len(deleted),)], "ingest")
    cluster.wait_for_rows("stream", expected)
    if server is not None:
        cluster.stop("ingest")
    cluster.stop("stream")
    run.say(f"{expected:,} toots have come through")


def check(run, server):
    """Compares topic and tables with what Python makes of the same."""
    records = [json.loads(value) for _, _, _, value in run.kafka.read(run.variables["ESSAIM_VAR_TOPIC"])]
    query = run.postgres.query
    deleted = query("SELECT toot_id FROM deleted_toots ORDER BY 1")
    if server is not None:
        messages, ids = ingested(server.events)
        run.check("the topic has what was sent, each once", comparable(records), comparable(messages))
        run.check("deleted_toots", deleted, sorted(ids))
    toots = Toots(records, deleted)
    # Texts in the order of their bytes, as Python's.
    rows = lambda table, *order: query(f"SELECT * FROM {table} ORDER BY {', '.join(order)}")  # noqa: E731
    text = lambda column: f'{column} COLLATE "C"'  # noqa: E731
    run.check("filtered_toots", rows("filtered_toots", text("toot_id")), toots.filtered())
    run.check("toots_time_window_aggregates", rows("toots_time_window_aggregates", "1"), toots.windows())
    run.check("user_avg_length", rows("user_avg_length", text("username")), toots.users())
    run.check("hashtag_avg_length", rows("hashtag_avg_length", text("hashtag")), toots.hashtags())
    run.check("active_users", rows("active_users", text("username")), toots.active(20))
    run.check("toots_of_active_users", rows("toots_of_active_users", text("toot_id")), toots.of_active(20))
    run.check("toots_by_day_and_hashtag", rows("toots_by_day_and_hashtag", "day", text("hashtag")), toots.by_day_and_hashtag())
    run.check("top_hashtags", rows("top_hashtags", text("hashtag")), toots.top_hashtags(10))
    run.check("toots_per_day", rows("toots_per_day", "day"), toots.per_day())
    return len(toots.toots)


def pipeline(run):
    run.services()
    topic = run.topic("mastodon_stream")
    run.kafka.create(topic, f"{topic}_dead_letter")
    with timeline(run) as server:
        run.variables |= {"ESSAIM_VAR_TOPIC": topic}
        if server is None:
            run.variables |= {name: os.environ[name] for name in ("ESSAIM_VAR_MASTODON", "ESSAIM_VAR_MASTODON_TOKEN")}
        else:
            run.variables |= {"ESSAIM_VAR_MASTODON": server.url, "ESSAIM_VAR_MASTODON_TOKEN": server.token}
        with run.cluster() as cluster:
            stream(run, cluster, server)
            cluster.submit(run.folder / "history.sql", name="history", wait=True)
            run.say("the history is done")
            toots = check(run, server)
            draw(run.postgres, run.plots)
            keep(run, cluster)
    return f"{toots:,} toots, a worker and the master killed meanwhile"


if __name__ == "__main__":
    main("mastodon", pipeline)
