"""A master and workers as processes of their own, to be killed and started again, and the command line that talks to them."""

import ctypes
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

from .services import ROOT
from .wait import until


def binary():
    """The `essaim` to run: $ESSAIM_BIN, the one on PATH, or the newest that cargo has built."""
    if os.environ.get("ESSAIM_BIN"):
        return os.environ["ESSAIM_BIN"]
    cache = Path(os.environ.get("ESSAIM_CACHE") or Path.home() / ".cache/essaim")
    targets = [Path(os.environ["CARGO_TARGET_DIR"])] if os.environ.get("CARGO_TARGET_DIR") else []
    targets += [cache / "target", ROOT / "target"]
    built = [target / profile / "essaim" for target in targets for profile in ("release", "debug")]
    built = [program for program in built if program.is_file()]
    if built:
        return str(max(built, key=lambda program: program.stat().st_mtime))
    if shutil.which("essaim"):
        return shutil.which("essaim")
    raise RuntimeError("there is no essaim: build it with `cargo build --bin essaim`, or set ESSAIM_BIN to where it is")


def _die_with_parent():
    """Has the kernel kill the child when this program ends, however it ends."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


class Process:
    """A child with its output in files."""

    def __init__(self, name, command, folder, env):
        self.name = name
        self.log = folder / f"{name}.log"
        out = folder / f"{name}.out"
        with open(self.log, "a") as log, open(out, "w") as stdout:
            self.child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=log, env=env, preexec_fn=_die_with_parent
            )
        self.out = out

    def first_line(self):
        """The line that says where it listens."""

        def line():
            text = self.out.read_text()
            if "\n" in text:
                return text.split("\n", 1)[0]
            if self.child.poll() is not None:
                raise RuntimeError(f"{self.name} ended with {self.child.returncode}:\n{self.tail()}")
            return None

        return until(f"{self.name} to listen", line)

    def tail(self, lines=20):
        """The end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def kill(self):
        """kill -9, and waits until it is gone."""
        self.child.kill()
        self.child.wait(30)


class CommandFailed(Exception):
    """An `essaim` command ended with another exit code than 0."""


class Cluster:
    """One master and some workers.

    `variables` are what jobs may name as ${…}. State, logs and ports outlive a process, so that one which was killed can
    be started again as the same.
    """

    def __init__(self, folder, variables, workers=2, slots=2, memory="1GiB", state_dir=None):
        self.program = binary()
        self.folder = Path(folder)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        # Settings of the caller's own cluster are not for this one.
        self.env = {name: value for name, value in os.environ.items() if not name.startswith("ESSAIM_")} | variables
        self.slots, self.memory = slots, memory
        # Where jobs and checkpoints live: a folder, or s3://….
        self.state_dir = state_dir or str(self.folder / "state")
        self.grpc = self.http = "127.0.0.1:0"
        self.master = None
        self.workers = [None] * workers

    def __enter__(self):
        self.start_master()
        for number in range(len(self.workers)):
            self.start_worker(number)
        self.wait_for_workers(len(self.workers))
        return self

    def __exit__(self, *_):
        for process in [self.master, *self.workers]:
            if process is not None:
                process.kill()

    @property
    def url(self):
        """The master's address, for `essaim --master`."""
        return f"http://{self.grpc}"

    def start_master(self):
        """Starts the master, on the ports that it had before."""
        command = [self.program, "master", "--listen", self.grpc, "--http", self.http]
        command += ["--state-dir", self.state_dir, "--memory", self.memory]
        self.master = Process("master", command, self.folder, self.env)
        words = self.master.first_line().split()
        self.grpc, self.http = words[3], words[5]

    def start_worker(self, number):
        """Starts a worker."""
        command = [self.program, "worker", "--master", self.url, "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]
        command += ["--slots", str(self.slots), "--memory", self.memory]
        self.workers[number] = Process(f"worker{number}", command, self.folder, self.env)

    def wait_for_workers(self, count):
        """Waits until so many workers are registered."""
        import urllib.request

        def registered():
            try:
                with urllib.request.urlopen(f"http://{self.http}/api/v1/cluster", timeout=5) as answer:
                    cluster = json.load(answer)
            except OSError:
                return False
            return len(cluster["workers"]) >= count

        until(f"{count} workers", registered)

    def crash_worker(self, number=0):
        """Kills a worker with SIGKILL and starts another in its place."""
        self.workers[number].kill()
        self.start_worker(number)

    def crash_master(self):
        """Kills the master with SIGKILL and starts it again over its state dir."""
        self.master.kill()
        self.start_master()

    def essaim(self, *arguments, text=None):
        """Runs an `essaim` command against this master, and returns what it printed."""
        env = self.env | {"ESSAIM_MASTER": self.url}
        done = subprocess.run([self.program, *arguments], env=env, input=text, capture_output=True, text=True)
        if done.returncode != 0:
            raise CommandFailed(f"essaim {' '.join(map(str, arguments))} ended with {done.returncode}: {done.stderr}{done.stdout}")
        return done.stdout

    def submit(self, file, name=None, *, wait=False):
        """Submits a job file. Returns the job's id, or what became of it if `wait`."""
        arguments = ["submit", str(file), "--json"] + (["--name", name] if name else []) + (["--wait"] if wait else [])
        answer = json.loads(self.essaim(*arguments))
        return answer if wait else answer["job_id"]

    def status(self, job):
        """The job, as `essaim status --json` prints it."""
        return json.loads(self.essaim("status", job, "--json"))

    def wait_for_state(self, job, state, seconds=60):
        """Waits until a job is, or was already, in `state`."""
        ended = ("succeeded", "failed", "cancelled", "stopped")
        until(f"{job} to be {state}", lambda: self.status(job)["state"] in (state, *ended), seconds, pause=0.02)

    def wait(self, job, seconds=900):
        """Waits until a job has succeeded, though its master may be restarted meanwhile. Returns its status."""

        def ended():
            try:
                status = self.status(job)
            except CommandFailed as error:
                # A master that has just been started may not answer yet.
                if "ended with 3" in str(error):
                    return None
                raise
            if status["state"] in ("failed", "cancelled"):
                raise RuntimeError(f"job {job} is {status['state']}: {status.get('message')}")
            return status if status["state"] in ("succeeded", "stopped") else None

        return until(f"the end of {job}", ended, seconds, pause=0.3)

    def rows_read(self, job):
        """Rows that a streaming job has read so far, over all of its starts. A job that has ended badly is an error."""
        try:
            status = self.status(job)
        except CommandFailed as error:
            # A master that has just been started may not answer yet.
            if "ended with 3" in str(error):
                return 0
            raise
        if status["state"] in ("failed", "cancelled"):
            raise RuntimeError(f"job {job} is {status['state']}: {status.get('message')}")
        return int((status.get("totals") or {}).get("input_rows") or 0)

    def wait_for_rows(self, job, rows, seconds=120):
        """Waits until a streaming job has committed so many input rows."""
        return until(f"{rows} rows read by {job}", lambda: self.rows_read(job) >= rows, seconds)

    def until(self, what, condition, *jobs, seconds=300):
        """As `wait.until`, and an error at once if one of the streaming jobs has ended badly meanwhile."""

        def met():
            for job in jobs:
                self.rows_read(job)
            return condition()

        return until(what, met, seconds, pause=0.2)

    def stop(self, job):
        """Ends a streaming job after its epoch."""
        return json.loads(self.essaim("stop", job, "--json"))["state"]

    def sql(self, *statements):
        """The rows of the last statement, as dictionaries."""
        arguments = [argument for statement in statements for argument in ("-c", statement)]
        return json.loads(self.essaim("sql", "--json", *arguments) or "[]")
