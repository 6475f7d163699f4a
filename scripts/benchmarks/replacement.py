"""Replacement: how long it takes from the death of a worker to the first deed of the next one."""

import collections
import gc
import os
import select
import signal
import tempfile
import time

from .processes import Failed, kill_everything, spawn
from .programs import circus_config, compiled, runit_services, supervisord_config

# start_server and runsv sleep for a second after a start and see no end of the worker in that time. Their
# users seldom meet that, so no worker is killed before this age, whoever's it is.
MIN_AGE = 1.2

BEACON_IN_SH = '#!/bin/sh\necho $$ > "$BENCH_FIFO"\nexec sleep 1000\n'


def make_beacon(directory):
    """The worker: writes its pid to $BENCH_FIFO as its first deed, then sleeps. Gives (path, words)."""
    path = compiled("beacon", directory)
    if path:
        return path, "a static C program"
    path = os.path.join(directory, "beacon.sh")
    with open(path, "w") as file:
        file.write(BEACON_IN_SH)
    os.chmod(path, 0o755)
    return path, "a shell script, for want of a C compiler"


class Reborn:
    """A supervisor, or several alike, whose workers are killed and must come back."""

    def __init__(self, directory, count):
        self.workers = collections.deque()  # (pid, when it was born), the oldest first
        self.samples, self.gap = [], None
        self.count = count
        fifo = os.path.join(directory, "fifo")
        os.mkfifo(fifo)
        self.env = {**os.environ, "BENCH_FIFO": fifo}
        self.log = os.path.join(directory, "log")
        # For both directions, so that there is always a writer and never an end of file.
        self.fifo = os.open(fifo, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self.poll = select.poll()
        self.poll.register(self.fifo, select.POLLIN)

    def launch(self, commands):
        self.launched = [spawn(argv, self.env, self.log) for argv in commands]

    def pids_told(self, seconds):
        if not self.poll.poll(seconds * 1000):
            raise Failed(f"no worker within {seconds:.0f} s")
        return [int(line) for line in os.read(self.fifo, 4096).split()]

    def wait_for_all(self):
        deadline = time.monotonic() + 15
        while len(self.workers) < self.count:
            for pid in self.pids_told(max(0.0, deadline - time.monotonic())):
                self.workers.append((pid, time.monotonic()))

    def kill_one(self, seconds):
        """Kills the oldest worker, in whichever slot it is, and waits for the next one to speak."""
        pid, born = self.workers.popleft()
        time.sleep(max(0.0, born + MIN_AGE - time.monotonic()))
        start = time.perf_counter_ns()
        os.kill(pid, signal.SIGKILL)
        self.after_kill(pid)
        told = self.pids_told(seconds)
        end = time.perf_counter_ns()
        if len(told) != 1:
            raise Failed(f"{len(told)} workers came for one that was killed")
        self.samples.append((end - start) / 1000)
        self.workers.append((told[0], time.monotonic()))

    def after_kill(self, pid):
        """Nothing: to see it and to replace it is the supervisor's work."""


class Floor(Reborn):
    """The bench itself as the supervisor: nobody can be faster than wait, fork and exec."""

    def launch(self, commands):
        self.command = commands[0]
        for _ in range(self.count):
            spawn(self.command, self.env, self.log)

    def after_kill(self, pid):
        os.waitpid(pid, 0)
        spawn(self.command, self.env, self.log)


def measure_replacement(report, programs, kills, slow_kills, slow_seconds, temporary):
    beacon, words = make_beacon(temporary)
    report.section(f"replacement of a killed worker ({words}), microseconds from SIGKILL to its first deed")
    count = 20  # workers of each, killed in turn: enough for all to be old before they are killed again
    directory = {}

    def runit():
        programs["runsv"]
        services = runit_services(directory["runit"], count, lambda path: os.symlink(beacon, path))
        return [[programs["runsvdir"], services]]

    def supervisord():
        config = supervisord_config(directory["supervisord"], beacon, 2)
        return [[programs["supervisord"], "-c", config]]

    def circusd():
        return [[programs["circusd"], circus_config(directory["circusd"], beacon, 2)]]

    fast = {
        "panzer": lambda: [[programs["panzer"], "-n", str(count), "--backoff", "0:0", "--", beacon]],
        "runit": runit,
        "start_server": lambda: [[programs["start_server"], "--port=127.0.0.1:0", "--", beacon]] * count,
        "fork and exec alone": lambda: [[beacon]],
    }
    slow = {"supervisord": supervisord, "circusd": circusd}

    def run(commands, count, kills, seconds, seconds_in_all):
        racers = {}
        for name, command in commands.items():
            directory[name] = tempfile.mkdtemp(dir=temporary)
            racer = (Floor if name == "fork and exec alone" else Reborn)(directory[name], count)
            racers[name] = racer
            try:
                racer.launch(command())
            except LookupError:
                racer.gap = "absent"
        for racer in racers.values():
            try:
                if not racer.gap:
                    racer.wait_for_all()
            except Failed as failed:
                racer.gap = f"failed: {failed}"
        deadline = time.monotonic() + seconds_in_all
        gc.disable()
        for _ in range(kills):
            for racer in racers.values():  # in turn, so that a noisy moment hits all of them
                if racer.gap or time.monotonic() > deadline:
                    continue
                try:
                    racer.kill_one(min(seconds, max(0.1, deadline - time.monotonic())))
                except (Failed, ProcessLookupError) as failed:
                    racer.gap = f"failed: {failed}"
                time.sleep(0.005)  # the last one may still have to write its log
        gc.enable()
        kill_everything()
        medians = {}
        for name, racer in racers.items():
            os.close(racer.fifo)
            if racer.samples:
                medians[name] = report.row(name, racer.samples, racer.gap or "")
            else:
                report.gap(name, racer.gap or "out of time")
        return {name: value for name, value in medians.items() if not racers[name].gap}

    medians = run(fast, count, kills, 5, 45)
    run(slow, 2, slow_kills, 8, slow_seconds)
    for peer in ("runit", "start_server"):
        report.budget(f"replacement of a worker, us, against {peer}", medians.get("panzer"), medians.get(peer))
