"""Devices: generated events through Kafka, exploded to one row a reading, into CSV files and into one CSV that grows."""

import shutil
from pathlib import Path

from check import check
from confluent_kafka import Producer
from lib.example import keep, main
from plots import draw

EVENTS, EVENTS_SHORT = 30_000, 6_000

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
        readings, bad = check(run, cluster, explode, events)
        draw(out / "merged.csv", run.plots)
        keep(run, cluster)
        cluster.stop(generate)
        cluster.stop(explode)
    return f"{events:,} events, {readings:,} readings, {bad} records skipped"


if __name__ == "__main__":
    main("devices", pipeline)
