"""One run of an example: its command line, its folders, its progress, and the line that is left of it."""

import argparse
import fcntl
import os
import sys
import time
import traceback

from . import services
from .cluster import Cluster
from .services import ROOT, Kafka, Postgres


class Run:
    """What a pipeline is handed: where to write, what to talk to, and `say` for progress."""

    def __init__(self, name, arguments):
        self.name = name
        self.folder = ROOT / "examples" / name
        self.short = arguments.short
        self.quiet = arguments.quiet
        self.keep = arguments.keep
        # A short run leaves the results of a long one alone.
        self.label = name + ("_short" if self.short else "")
        self.work = ROOT / "target/examples" / self.label
        self.plots = arguments.plots or self.work / "plots"
        self.started = time.monotonic()
        self.checks = 0
        self.clusters = []
        self.variables = {}

    def say(self, text):
        """Progress, for whoever watches."""
        if not self.quiet:
            print(f"{time.monotonic() - self.started:6.1f} s  {text}", flush=True)

    def services(self):
        """PostgreSQL and Kafka, started if they are not up: a database made anew, and topics."""
        self.say("PostgreSQL and Kafka")
        self.variables |= services.start()
        self.postgres = Postgres(self.variables, f"essaim_{self.label}")
        self.variables |= self.postgres.variables
        self.kafka = Kafka(self.variables["KAFKA_BROKERS"])

    def topic(self, name):
        """A topic's name for this kind of run."""
        return f"{name}_short" if self.short else name

    def cluster(self, **settings):
        """A master and two workers whose jobs may name the variables of the run."""
        cluster = Cluster(self.work / "cluster", self.variables, **settings)
        self.clusters.append(cluster)
        return cluster

    def check(self, what, found, expected):
        """Compares two results exactly: anything that has `==`, tables as lists of rows."""
        self.checks += 1
        if found == expected:
            self.say(f"equal: {what}")
            return
        raise AssertionError(f"{what}: {difference(found, expected)}")


def difference(found, expected):
    """A few words on where two results differ."""
    if isinstance(found, list) and isinstance(expected, list):
        only_found = [row for row in found if row not in expected][:3] if len(found) < 20_000 else []
        only_expected = [row for row in expected if row not in found][:3] if len(expected) < 20_000 else []
        return (
            f"{len(found)} rows, expected {len(expected)};\n  only in the result: {only_found}"
            f"\n  only in what was expected: {only_expected}"
        )
    return f"{found!r}, expected {expected!r}"


def main(name, pipeline):
    """Runs `pipeline(run)`, which returns what it did in a few words. Ends the program with 1 if anything is not as it should be."""
    parser = argparse.ArgumentParser(description=f"Runs the example {name}: services, cluster, input, jobs, checks, plots.")
    parser.add_argument("--short", action="store_true", help="little data, for tests")
    parser.add_argument("--quiet", action="store_true", help="print one line when all is well")
    parser.add_argument("--keep", action="store_true", help="leave the cluster up until Ctrl-C, to look at it")
    parser.add_argument("--plots", metavar="DIR", help="where the pictures go; otherwise below target/examples")
    run = Run(name, parser.parse_args())
    run.work.mkdir(parents=True, exist_ok=True)
    os.makedirs(run.plots, exist_ok=True)
    # One run at a time: two would share the database and the topics.
    with open(run.work / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            did = pipeline(run)
        except KeyboardInterrupt:
            sys.exit(130)
        except Exception:
            traceback.print_exc()
            for cluster in run.clusters:
                for process in [cluster.master, *cluster.workers]:
                    if process is not None:
                        print(f"\nthe end of {process.log}:\n{process.tail()}", file=sys.stderr)
            sys.exit(f"{run.label} failed after {time.monotonic() - run.started:.1f} s")
    seconds = time.monotonic() - run.started
    print(f"{run.label}: {did}; {run.checks} checks equal; {seconds:.1f} s; plots in {os.path.relpath(run.plots)}", flush=True)


def keep(run, cluster):
    """With --keep: leaves everything up, says how to reach it, and waits for Ctrl-C."""
    if not run.keep:
        return
    database = run.variables
    print(f"export ESSAIM_MASTER={cluster.url}        # essaim jobs; status pages: http://{cluster.http}/")
    print(f"psql postgres://{database['PGUSER']}:…@{database['PGHOST']}:{database['PGPORT']}/{database['PGDATABASE']}")
    print("Ctrl-C ends it.", flush=True)
    try:
        cluster.master.child.wait()
    except KeyboardInterrupt:
        pass
