"""PostgreSQL and Kafka: those of `scripts/services`, or others that the environment names.

Jobs name them by variables, which the master fills in: ${PGHOST} and its kin, as for psql, and ${KAFKA_BROKERS}.
"""

import os
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

ROOT = Path(__file__).resolve().parents[2]


def scripts_services(*arguments):
    """Runs scripts/services and returns what it printed."""
    done = subprocess.run([ROOT / "scripts/services", *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"scripts/services {' '.join(arguments)}: {done.stderr or done.stdout}")
    return done.stdout


def start():
    """Starts PostgreSQL and Kafka where the environment names none, and returns the variables that jobs use for them."""
    private = {}
    if "PGHOST" not in os.environ or "KAFKA_BROKERS" not in os.environ:
        scripts_services("start")
        lines = [line.removeprefix("export ") for line in scripts_services("env").splitlines()]
        private = dict(line.split("=", 1) for line in lines)
    variables = {name: os.environ[name] for name in os.environ if name.startswith("PG") and os.environ[name]}
    if "PGHOST" not in variables:
        url = urlsplit(private["ESSAIM_TEST_POSTGRES"])
        variables |= {
            "PGHOST": url.hostname,
            "PGPORT": str(url.port),
            "PGUSER": url.username,
            "PGPASSWORD": url.password,
            "PGDATABASE": url.path.strip("/"),
        }
    variables.setdefault("PGPORT", "5432")
    variables["KAFKA_BROKERS"] = os.environ.get("KAFKA_BROKERS") or private["ESSAIM_TEST_KAFKA"]
    return variables


def mongodb(database):
    """The URL of a MongoDB database: on the server that ESSAIM_VAR_MONGODB names, or on that of scripts/services."""
    url = os.environ.get("ESSAIM_VAR_MONGODB")
    if not url:
        scripts_services("start")
        lines = [line.removeprefix("export ") for line in scripts_services("env").splitlines()]
        url = dict(line.split("=", 1) for line in lines)["ESSAIM_TEST_MONGODB"]
    parts = urlsplit(url)
    # The login stays where it was.
    query = parts.query or f"authSource={parts.path.strip('/') or 'admin'}"
    return parts._replace(path=f"/{database}", query=query).geturl()


class Postgres:
    """A database of its own for an example, made anew."""

    def __init__(self, variables, database):
        self.variables = variables | {"PGDATABASE": database}
        with psycopg.connect(self._conninfo(variables), autocommit=True) as admin:
            admin.execute(f'DROP DATABASE IF EXISTS "{database}" WITH (FORCE)')
            admin.execute(f'CREATE DATABASE "{database}"')

    @staticmethod
    def _conninfo(variables):
        return psycopg.conninfo.make_conninfo(
            host=variables["PGHOST"],
            port=variables["PGPORT"],
            user=variables["PGUSER"],
            password=variables.get("PGPASSWORD"),
            dbname=variables["PGDATABASE"],
            connect_timeout=10,
        )

    def connect(self):
        """A connection that commits each statement by itself."""
        return psycopg.connect(self._conninfo(self.variables), autocommit=True)

    def query(self, sql, parameters=None):
        """The rows of a query, as tuples."""
        with self.connect() as connection:
            return connection.execute(sql, parameters).fetchall()

    def execute(self, sql, parameters=None):
        """Runs a statement."""
        with self.connect() as connection:
            connection.execute(sql, parameters)

    def frame(self, sql, parameters=None):
        """The rows of a query, as a pandas frame."""
        import pandas

        with self.connect() as connection:
            cursor = connection.execute(sql, parameters)
            return pandas.DataFrame(cursor.fetchall(), columns=[column.name for column in cursor.description])


class Kafka:
    """The topics of an example."""

    def __init__(self, brokers):
        self.brokers = brokers
        self.admin = AdminClient({"bootstrap.servers": brokers})

    def create(self, *topics, partitions=4):
        """Makes topics anew: those that are there are deleted first."""
        old = [topic for topic in topics if topic in self.admin.list_topics(timeout=30).topics]
        if old:
            for done in self.admin.delete_topics(old, operation_timeout=30).values():
                done.result(60)
        from .wait import until

        def made():
            for topic, done in self.admin.create_topics([NewTopic(topic, partitions, 1) for topic in missing]).items():
                try:
                    done.result(60)
                    missing.remove(topic)
                # A topic that has just been deleted may be there a moment longer.
                except KafkaException:
                    pass
            return not missing

        missing = set(topics)
        until(f"the topics {topics}", made)

    def ends(self, topic):
        """The end offset of each partition."""
        consumer = self._consumer()
        try:
            partitions = self.admin.list_topics(topic, timeout=30).topics[topic].partitions
            return {p: consumer.get_watermark_offsets(TopicPartition(topic, p), timeout=30)[1] for p in partitions}
        finally:
            consumer.close()

    def read(self, topic):
        """All records of a topic as they stand now, committed ones only: (partition, offset, key, value) in order of offsets."""
        consumer = self._consumer()
        records = []
        try:
            for partition, end in sorted(self.ends(topic).items()):
                at = TopicPartition(topic, partition, 0)
                consumer.assign([at])
                # Markers of transactions take offsets too: the end is reached by position, not by count.
                while (consumer.position([at])[0].offset if end else 0) < end:
                    for message in consumer.consume(10_000, timeout=0.5):
                        if message.error():
                            raise KafkaException(message.error())
                        if message.offset() < end:
                            records.append((partition, message.offset(), message.key(), message.value()))
        finally:
            consumer.close()
        return records

    def _consumer(self):
        return Consumer(
            {
                "bootstrap.servers": self.brokers,
                "group.id": "essaim-examples",
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "isolation.level": "read_committed",
            }
        )
