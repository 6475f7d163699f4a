"""What a steady load of short connections sees while a server of two processes reloads, one reload after another.

The client is that of the tests: 8 loops, each with one request at a time that has 5 s to be answered, so that one which
hangs counts as lost just as one that is refused or reset. `stall` is the longest time that one loop was without an
answer while the reloads ran, `steady` the same afterwards without a reload, on the same server. Each program reloads
an app that is there at once, and one whose processes take two seconds to boot.

The same with one of the two processes killed (`kill -9`), again and again, each time when both serve: what it had in
hand is lost, and nobody else waits for the new one's boot.

A reload is through, whoever does it, when both processes that served before are gone and two others have booted: each
process of an app adds its pid to a file when it is about to serve. A program that says itself when it is through is
waited for too: `pm2 reload` ends then, and uWSGI's log tells of its chain.
"""

import collections
import os
import re
import signal
import subprocess
import tempfile
import time

from .processes import Failed, kill_everything, read, wait_until
from .programs import APPS, load_client
from .report import median
from .servers import Server

WORKERS, LOOPS = 2, 8
SHARED, PER_WORKER = "panzer -n 2", "panzer, per-worker"
BOOTS = {"an app that boots at once": 0, "an app that takes 2 s to boot": 2}
SLOW = 2
KILLED = (SHARED, PER_WORKER, "gunicorn", "uWSGI", "pm2 cluster")  # of the others a kill means something else
RELOAD_TIMEOUT = 40  # seconds; nobody whose reloads work comes near it

# How long the steady load is looked at at the most, in seconds: a longer look sees longer stalls, so that this favours
# nobody but makes the budget a little harder.
STEADY = 20
STALL_BUDGET = 25  # milliseconds that a reload may add to the longest stall of the steady load


def contenders(programs, directory):
    """name -> (function that gives the command, function that makes a running server reload, words for the table)"""
    graceful, prefork = os.path.join(APPS, "graceful.js"), os.path.join(APPS, "prefork.py")
    fifo, log = os.path.join(directory, "fifo"), os.path.join(directory, "log")

    def panzer(*options):
        return [programs["panzer"], "-n", str(WORKERS), *options, "--", programs["node"], graceful, "PORT"]

    def start_server():
        return [programs["start_server"], "--port", "127.0.0.1:PORT", "--", "/usr/bin/env", "python3", prefork]

    def gunicorn():
        options = ["--workers", str(WORKERS), "--worker-class", "sync", "--no-control-socket", "--chdir", APPS]
        return [programs["gunicorn"], *options, "--bind", "127.0.0.1:PORT", "wsgi:application"]

    def uwsgi():
        # Without --lazy-apps the master boots the app, and a chain reload would only fork the old code.
        options = ["--master", "--processes", str(WORKERS), "--lazy-apps", "--disable-logging", "--master-fifo", fifo]
        app = ["--plugin", "python3", "--chdir", APPS, "--module", "wsgi:application"]
        return [programs["uwsgi"], *options, "--http-socket", "127.0.0.1:PORT", *app]

    def pm2(*arguments):
        return [programs["node"], programs["pm2"], *arguments]

    def hup(server):
        os.kill(server.pid, signal.SIGHUP)

    def chain(_):
        completed = lambda: read(log).count("chain reloading complete")
        before = completed()
        with open(fifo, "w") as file:
            file.write("c")
        # It looks once a second how far it is, and until it has said this it turns the next one down.
        wait_until(lambda: completed() > before, RELOAD_TIMEOUT, "a chain reload is complete")

    def pm2_reload(_):
        env = {**os.environ, **environment(directory)}
        argv, silent = pm2("reload", "all"), subprocess.DEVNULL
        subprocess.run(argv, env=env, stdin=silent, stdout=silent, stderr=silent, timeout=RELOAD_TIMEOUT)

    return {
        SHARED: (panzer, hup, "node server.js, HUP"),
        PER_WORKER: (lambda: panzer("--balance", "per-worker"), hup, "the same, each with a queue"),
        "start_server": (start_server, hup, "a Python server that forks twice, HUP"),
        "gunicorn": (gunicorn, hup, "sync workers, HUP"),
        "uWSGI": (uwsgi, hup, "HUP"),
        "uWSGI, chain": (uwsgi, chain, "chain reload"),
        "pm2 cluster": (lambda: pm2("start", graceful, "-i", str(WORKERS), "--", "PORT"), pm2_reload, "pm2 reload"),
    }


def environment(directory, boot=0):
    return {
        "BENCH_BOOT": str(boot),
        "BENCH_READY": os.path.join(directory, "ready"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PM2_HOME": directory,
        "PM2_DISABLE_VERSION_CHECK": "true",
    }


class Client:
    """The load, from when it is made to stop()."""

    def __init__(self, path, server, directory):
        self.enough = os.path.join(directory, "enough")
        argv = [path, f"127.0.0.1:{server.port}", "--connections", str(LOOPS), "--until-file", self.enough]
        silent = subprocess.DEVNULL
        self.process = subprocess.Popen(argv, stdin=silent, stdout=subprocess.PIPE, stderr=silent, text=True)

    def stop(self):
        open(self.enough, "w").close()
        said, _ = self.process.communicate(timeout=30)
        os.unlink(self.enough)
        return Seen(said)


class Seen:
    """What the client says: how many requests and losses, and the longest stall in milliseconds."""

    def __init__(self, said):
        requests = re.match(r"(\d+) requests, ", said)
        lost = re.search(r" (\d+) lost \((.*?)\)", said)
        stall = re.search(r"longest stall\D* ([\d.]+) ms", said)
        if not (requests and lost and stall and int(requests[1])):
            raise Failed(f"failed: the client says: {said.strip()[:200] or 'nothing'}")
        self.requests, self.lost, self.stall = int(requests[1]), int(lost[1]), float(stall[1])
        self.losses = ", ".join(kind for kind in lost[2].split(", ") if not kind.startswith("0 "))


def ready_pids(directory):
    """The processes that have booted and still run."""
    try:
        return {int(pid) for pid in read(os.path.join(directory, "ready")).split() if runs(pid)}
    except FileNotFoundError:
        return set()


def runs(pid):
    try:
        return read(f"/proc/{pid}/stat").rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def seconds_of_reload(number, server, reload, directory):
    """How long a reload takes."""
    before, start = ready_pids(directory), time.monotonic()

    def through():
        now = ready_pids(directory)
        return len(now) == WORKERS and not now & before

    reload(server)
    wait_until(through, RELOAD_TIMEOUT, f"reload {number} is through")
    return time.monotonic() - start


def seconds_of_crash(number, _server, _reload, directory):
    """How long it takes after a kill of one process until as many serve again."""
    before, start = ready_pids(directory), time.monotonic()
    os.kill(max(before), signal.SIGKILL)

    def through():
        now = ready_pids(directory)
        return len(now) == WORKERS and max(before) not in now

    wait_until(through, RELOAD_TIMEOUT, f"crash {number} is over")
    return time.monotonic() - start


Taken = collections.namedtuple("Taken", "reloading steady seconds")


def take(client, contender, boot, times, directory, seconds_of=seconds_of_reload):
    command, reload, _ = contender
    server = Server(command(), os.path.join(directory, "log"), environment(directory, boot))
    wait_until(lambda: len(ready_pids(directory)) == WORKERS, 15, f"{WORKERS} processes serve")
    load = Client(client, server, directory)
    start = time.monotonic()
    time.sleep(0.5)
    seconds = [seconds_of(1 + number, server, reload, directory) for number in range(times)]
    time.sleep(0.5)
    lasted = time.monotonic() - start
    reloading = load.stop()

    load = Client(client, server, directory)
    time.sleep(min(lasted, STEADY))
    return Taken(reloading, load.stop(), seconds)


def measure_reloads(report, programs, reloads, temporary):
    try:
        client = load_client()
    except LookupError as missing:
        client, absent = None, f"absent ({missing})"
    taken = {}
    parts = [(f"{reloads} reloads of {words}", boot, reloads, seconds_of_reload) for words, boot in BOOTS.items()]
    crashes = max(1, reloads // 2)
    parts.append((f"{crashes} crashes of an app that takes 2 s to boot", SLOW, crashes, seconds_of_crash))
    for words, boot, times, seconds_of in parts:
        report.table(
            f"{words}, {WORKERS} processes, short connections, {LOOPS} loops",
            ["requests", "lost", "stall, ms", "steady, ms", "s each"],
        )
        for name in contenders(programs, ""):
            if seconds_of is seconds_of_crash and name not in KILLED:
                continue
            directory = tempfile.mkdtemp(dir=temporary)
            contender = contenders(programs, directory)[name]
            try:
                if not client:
                    raise LookupError
                one = take(client, contender, boot, times, directory, seconds_of)
                taken[name, boot, seconds_of] = one
                figures = [one.reloading.requests, one.reloading.lost, one.reloading.stall, one.steady.stall]
                report.cells(name, [*figures, median(one.seconds)], note(contender, one))
            except LookupError as missing:
                report.cells(name, [], absent if not client else f"absent ({missing})")
            except (Failed, OSError, subprocess.TimeoutExpired) as failed:
                report.cells(name, [], str(failed))
            finally:
                kill_everything()
    for name in (SHARED, PER_WORKER):
        budgets(report, name, [taken.get((name, boot, seconds_of_reload)) for boot in BOOTS.values()])
        report.budget(
            f"{name}, stall that crashes add with a 2 s boot, ms",
            added_stall(taken.get((name, SLOW, seconds_of_crash))),
            STALL_BUDGET,
        )


def added_stall(one):
    return max(0, one.reloading.stall - one.steady.stall) if one else None


def note(contender, one):
    lost = f"; lost: {one.reloading.losses}" if one.reloading.lost else ""
    steady = f"; {one.steady.lost} lost without a reload: {one.steady.losses}" if one.steady.lost else ""
    return contender[2] + lost + steady


def budgets(report, name, taken):
    whole = None not in taken
    lost = sum(one.reloading.lost for one in taken) if whole else None
    report.budget(f"{name}, requests lost in reloads", lost, 0)
    report.budget(f"{name}, stall that reloads add with a 2 s boot, ms", added_stall(taken[-1]), STALL_BUDGET)
