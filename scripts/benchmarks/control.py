"""What the control socket costs: how long `panzer ctl ready` takes, and what clients that do their worst do to workers.

The latter is what replacement.py measures, from SIGKILL to the new worker's first deed, while nobody looks, and while
clients of the control socket, of --metrics, or of both do all of this at once, each kind in a process of its own: a
thousand idle connections, a flood of requests, of garbage, of 70 kB without a newline, and readers that never read.
"""

import collections
import gc
import mmap
import os
import random
import resource
import signal
import socket
import struct
import subprocess
import tempfile
import time

from .processes import Failed, kill_everything, wait_until
from .replacement import Reborn, make_beacon
from .report import median
from .servers import free_port
from .startup import time_of

WORKERS = 4
BUDGET = 5000  # microseconds, both for `ctl ready` and for a replacement under attack

IDLE = 1000
DEAF = 200
PAUSE = 0.05  # seconds until those who hold many connections come anew: panzer has closed most of them by then
PATIENCE = 5  # seconds that one client waits for anything at the most

HTTP = b"GET /metrics HTTP/1.1\r\nHost: bench\r\n\r\n"
# request: is answered; half: the beginning of one; deaf: asks for much that is never read
Words = collections.namedtuple("Words", "request half deaf")
CONTROL_WORDS = Words(b"status\n", b"stat", b"status\n")
METRICS_WORDS = Words(HTTP.replace(b"Host", b"Connection: close\r\nHost"), HTTP[:9], HTTP * 500)


class Attack:
    """Clients of one socket that do their worst, each kind of them in a process of its own."""

    def __init__(self, name, connect, words):
        self.connect, self.words = connect, words
        kinds = {
            "idle": self.idle,
            "requests": self.requests,
            "garbage": self.garbage,
            "70 kB": self.endless,
            "deaf": self.deaf,
        }
        self.names = [f"{name}: {kind}" for kind in kinds]
        self.counts = mmap.mmap(-1, 8 * len(kinds))  # shared with the clients: how often each has done it
        self.pids = []
        try:
            for number, kind in enumerate(kinds.values()):
                self.pids.append(self.start(number, kind))
        except OSError:
            self.end()
            raise

    def start(self, number, kind):
        pid = os.fork()
        if pid:
            return pid
        try:
            os.setsid()
            for ending in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(ending, signal.SIG_DFL)
            _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
            gc.enable()
            done = 0
            while True:
                try:
                    done += kind()
                except OSError:
                    continue  # turned away, which is panzer's right
                struct.pack_into("q", self.counts, 8 * number, done)
        finally:
            os._exit(1)  # never back into the bench's own course

    def idle(self):
        self.hold(IDLE, [b"", self.words.half])
        return 1

    def deaf(self):
        self.hold(DEAF, [self.words.deaf])
        return 1

    def requests(self):
        return self.exchange(self.words.request) > 0

    def garbage(self):
        self.exchange(b"\xff" + random.randbytes(600) + b"\r\n\r\n")
        return 1

    def endless(self):
        self.exchange(b"x" * 70_000)
        return 1

    def hold(self, count, words):
        """So many connections at once, on which these words are said in turn."""
        held = []
        try:
            for number in range(count):
                held.append(self.connect())
                held[-1].setblocking(False)
                try:
                    held[-1].send(words[number % len(words)])
                except OSError:
                    pass  # closed already
            time.sleep(PAUSE)
        finally:
            for one in held:
                one.close()

    def exchange(self, words):
        """How many bytes came back; panzer may close before it has read all, or any, of the words."""
        came = 0
        with self.connect() as connection:
            try:
                connection.sendall(words)
                while some := connection.recv(65536):
                    came += len(some)
            except OSError:
                pass
        return came

    def rounds(self):
        """How often each kind has done it so far."""
        return dict(zip(self.names, struct.unpack(f"{len(self.names)}q", self.counts)))

    def end(self):
        for pid in self.pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


class Watched(Reborn):
    """A panzer that can be asked, and serves metrics."""

    def __init__(self, panzer, beacon, directory):
        super().__init__(directory, WORKERS)
        self.panzer, self.port = panzer, free_port()
        metrics = ["--metrics", f"127.0.0.1:{self.port}"]
        self.launch([[panzer, "-n", str(WORKERS), "--backoff", "0:0", *metrics, "--", beacon]])
        self.pid = self.launched[0]
        self.wait_for_all()
        name = f"\0panzer/{os.stat('/proc/self/ns/pid').st_ino}/{self.pid}"
        self.attacks = {
            "control": ("control", self.connector(socket.AF_UNIX, name), CONTROL_WORDS),
            "metrics": ("metrics", self.connector(socket.AF_INET, ("127.0.0.1", self.port)), METRICS_WORDS),
        }
        wait_until(lambda: subprocess.run(self.ready(), capture_output=True).returncode == 0, 10, "it is ready")
        wait_until(self.metrics_are_served, 10, "the metrics are served")

    def ready(self):
        return [self.panzer, "ctl", "--pid", str(self.pid), "ready"]

    def connector(self, family, address):
        def connect():
            connection = socket.socket(family, socket.SOCK_STREAM)
            try:
                # Not settimeout(): with that a connection that finds the queue full fails at once.
                for way in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
                    connection.setsockopt(socket.SOL_SOCKET, way, struct.pack("ll", PATIENCE, 0))
                connection.connect(address)
            except OSError:
                connection.close()
                raise
            return connection

        return connect

    def metrics_are_served(self):
        try:
            with self.attacks["metrics"][1]() as connection:
                connection.sendall(HTTP)
                return connection.recv(100).startswith(b"HTTP/1.1 200")
        except OSError:
            return False

    def replaced(self, kills, targets):
        """Microseconds for each of so many replacements while these are attacked, and how often each kind came."""
        attacks = []
        self.samples = []
        try:
            for target in targets:
                attacks.append(Attack(*self.attacks[target]))
            # Before the first kill each kind has done what it does.
            came = lambda: all(all(one.rounds().values()) for one in attacks)
            wait_until(came, 30, "each kind of clients comes through")
            before = collections.Counter()
            for one in attacks:
                before.update(one.rounds())
            for _ in range(kills):
                self.kill_one(5)
            done = collections.Counter()
            for one in attacks:
                done.update(one.rounds())
            done.subtract(before)
            absent = [kind for kind, count in done.items() if not count]
            if absent:
                raise Failed(f"did not come through once meanwhile: {', '.join(absent)}")
            return self.samples, sum(done.values())
        finally:
            for one in attacks:
                one.end()


def measure_control(report, programs, asked, kills, temporary):
    beacon, words = make_beacon(temporary)
    watched, why = None, ""
    try:
        watched = Watched(programs["panzer"], beacon, tempfile.mkdtemp(dir=temporary))
    except Failed as failed:
        why = f"failed: {failed}"

    def line(who, take):
        """Prints one line, and gives the median; None: it could not be taken."""
        try:
            if not watched:
                raise Failed(why)
            samples, note = take()
        except (Failed, ProcessLookupError) as failed:
            report.cells(who, [], str(failed))
            return None
        report.cells(who, [len(samples), median(samples), max(samples)], note)
        return median(samples)

    def under_attack(*targets):
        def take():
            samples, rounds = watched.replaced(kills, targets)
            return samples, f"{rounds} rounds of {5 * len(targets)} kinds of clients" if targets else ""

        return take

    columns = ["n", "median", "longest"]
    gc.disable()
    report.table(f"`panzer ctl ready` with {WORKERS} workers, microseconds from its start to its end", columns)
    time_of_ready = line("panzer ctl ready", lambda: ([time_of(watched.ready()) for _ in range(asked)], ""))
    report.table(f"replacement of a killed worker ({words}), microseconds from SIGKILL to its first deed", columns)
    line("nobody looks", under_attack())
    line("the control socket is attacked", under_attack("control"))
    line("--metrics is attacked", under_attack("metrics"))
    attacked = line("both are attacked", under_attack("control", "metrics"))
    gc.enable()
    kill_everything()
    if watched:
        os.close(watched.fifo)
    report.budget("panzer ctl ready, us, median", time_of_ready, BUDGET)
    report.budget("replacement of a worker under attack, us, median", attacked, BUDGET)
