"""Devices: generated events through Kafka, exploded to one row a reading, into CSV files and into one CSV that grows."""

import json
import shutil
from pathlib import Path

import pandas
from confluent_kafka import Producer

from lib.example import keep, main
from plots import draw

EVENTS, EVENTS_SHORT = 30_000, 6_000
COLUMNS = ["event_id", "event_offset", "publisher", "customer_id", "device_id", "temperature", "measure", "status", "event_time"]

# What a careless device sends: the first five are skipped and counted, the others are events without a reading.
BAD = [
    b"",
    b"no JSON",
    b'{"eventId": "cut off", "data": {"devi',
    b"[1, 2, 3]",
    b'{"eventId": "wrong type", "data": {"devices": [{"deviceId": "D001", "temperature": "warm"}]}}',
]
WITHOUT_READINGS = [None, b"{}", b'{"eventId": "no data", "data": null}', b'{"eventId": "no devices", "data": {"devices": []}}']


def job(run, name):
    """A job file; in a short run with less to do and less to wait for."""
    text = (run.folder / name).read_text()
    if run.short:
        for long, short in [("number_of_rows '30000'", f"number_of_rows '{EVENTS_SHORT}'"), ("'10 seconds'", "'2 seconds'")]:
            text = text.replace(long, short)
        text = text.replace("rows_per_second '500'", "rows_per_second '1000'")
    file = run.work / name
    file.write_text(text)
    return file


def send_bad(run, topic):
    """Puts records among the events that are none, or hold nothing. Returns how many."""
    producer = Producer({"bootstrap.servers": run.kafka.brokers})
    for value in BAD + WITHOUT_READINGS:
        producer.produce(topic, value=value)
    producer.flush(30)
    return len(BAD + WITHOUT_READINGS)


def parse(value):
    """A record as an event, or None if it is none."""
    try:
        event = json.loads(value)
    except ValueError:
        return None
    if not isinstance(event, dict):
        return None
    temperatures = [device.get("temperature") for device in devices(event)]
    return event if all(t is None or isinstance(t, int) for t in temperatures) else None


def devices(event):
    return (event.get("data") or {}).get("devices") or []


def expected(records):
    """What pandas makes of the raw topic: the readings, and how many records are no events."""
    events = [parse(value) for _, _, _, value in records if value is not None]
    kept = [event for event in events if event is not None and devices(event)]
    meta = ["eventId", "eventOffset", "eventPublisher", "customerId", "eventTime"]
    readings = pandas.json_normalize(kept, record_path=["data", "devices"], meta=meta, errors="ignore")
    readings = readings[[*meta[:4], "deviceId", "temperature", "measure", "status", "eventTime"]]
    readings.columns = COLUMNS
    return readings, events.count(None)


def rows(frame):
    """A frame's rows as texts, in an order of their own; a null is an empty text."""
    frame = frame.assign(event_time=pandas.to_datetime(frame["event_time"], format="ISO8601"))
    frame = frame.astype(object).where(frame.notna(), "")
    return sorted(tuple(map(str, row)) for row in frame.itertuples(index=False))


def check(run, cluster, job, topic, out):
    """Compares folder and merged file with the raw topic."""
    records = run.kafka.read(topic)
    wanted, bad = expected(records)
    sent = [(key.decode(), json.loads(value)["eventId"]) for _, _, key, value in records if key is not None]
    run.check("events, by their keys", len(set(sent)), EVENTS_SHORT if run.short else EVENTS)
    run.check("keys are the events' ids", [pair for pair in sent if pair[0] != pair[1]], [])
    wanted = rows(wanted)
    files = sorted((out / "readings").glob("part-*.csv"))
    frame = pandas.concat([pandas.read_csv(file) for file in files])
    run.check(f"{len(files)} files of readings", rows(frame), wanted)
    run.check("the merged file", rows(pandas.read_csv(out / "merged.csv")), wanted)
    lines = (out / "merged.csv").read_text().splitlines()
    run.check("its header, once", [n for n, line in enumerate(lines) if line == ",".join(COLUMNS)], [0])
    run.check("records skipped", int(cluster.status(job)["totals"]["records_skipped"]), bad)
    return len(wanted), bad


def pipeline(run):
    run.services()
    topic, out = run.topic("device-data"), Path(run.work) / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    run.kafka.create(topic)
    run.variables |= {"ESSAIM_VAR_TOPIC": topic, "ESSAIM_VAR_OUT": str(out)}
    events = EVENTS_SHORT if run.short else EVENTS
    with run.cluster() as cluster:
        generate = cluster.submit(job(run, "generate.sql"), name="devices-generate")
        explode = cluster.submit(job(run, "explode.sql"), name="devices-explode")
        sent = send_bad(run, topic)
        cluster.wait_for_rows(explode, events // 4)
        cluster.crash_worker()
        run.say("killed a worker")
        sent += send_bad(run, topic)
        cluster.wait_for_rows(explode, events // 2)
        cluster.crash_master()
        run.say("killed the master")
        sent += send_bad(run, topic)
        cluster.wait_for_rows(explode, events + sent)
        run.say(f"all {events + sent:,} records read")
        readings, bad = check(run, cluster, explode, topic, out)
        draw(out / "merged.csv", run.plots)
        keep(run, cluster)
        cluster.stop(generate)
        cluster.stop(explode)
    return f"{events:,} events, {readings:,} readings, {bad} records skipped"


if __name__ == "__main__":
    main("devices", pipeline)
