"""The same readings by pandas, from the raw topic."""

import json
from pathlib import Path

import pandas

COLUMNS = ["event_id", "event_offset", "publisher", "customer_id", "device_id", "temperature", "measure", "status", "event_time"]


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


def check(run, cluster, job, events):
    """Compares folder and merged file with the raw topic. Returns how many readings there are, and how many records are no events."""
    out = Path(run.variables["ESSAIM_VAR_OUT"])
    records = run.kafka.read(run.variables["ESSAIM_VAR_TOPIC"])
    wanted, bad = expected(records)
    sent = [(key.decode(), json.loads(value)["eventId"]) for _, _, key, value in records if key is not None]
    run.check("events in the topic, and different ones", (len(sent), len(set(sent))), (events, events))
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
