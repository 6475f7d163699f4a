"""How evenly connections are spread over four Node workers, for each --balance."""

import collections
import os
import signal
import socket
import subprocess
import time

from .processes import Failed, kill_everything, wait_until
from .programs import APPS
from .report import median
from .servers import Server, load

WORKERS = 4
BALANCES = ["shared", "per-worker"]

AT_ONCE = "keep-alive, 200 clients that come at once"
ONE_BY_ONE = "keep-alive, 200 clients that come one by one"
SHORT_MANY = "short connections, 200 clients"
SHORT_FEW = "short connections, 8 clients"
LOADS = [AT_ONCE, ONE_BY_ONE, SHORT_MANY, SHORT_FEW]


class Counts:
    """What the workers of a server count."""

    def __init__(self, server, path):
        self.server, self.path = server, path

    def take(self):
        """([connections of each worker], [requests of each worker]) since the last time."""
        open(self.path, "w").close()
        for pid in self.server.workers():
            os.kill(pid, signal.SIGUSR2)
        lines = lambda: [line for line in open(self.path).read().splitlines(keepends=True) if line.endswith("\n")]
        wait_until(lambda: len(lines()) == WORKERS, 5, "all workers tell their counts")
        return list(zip(*(map(int, line.split()) for line in lines())))


def come_one_by_one(server, address):
    """Opens 200 connections, each 2 ms after the last one's answer, and keeps them."""
    connections = []
    try:
        for _ in range(200):
            connection = socket.create_connection((address, server.port), 5)
            connections.append(connection)
            connection.sendall(b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n")
            connection.recv(1000)
            time.sleep(0.002)
    finally:
        for connection in connections:
            connection.close()


def drive(programs, server, name, address, seconds):
    if name == AT_ONCE:
        load(programs, server, address, 200, seconds, short=False)
    elif name == ONE_BY_ONE:
        come_one_by_one(server, address)
    else:
        load(programs, server, address, 200 if name == SHORT_MANY else 8, seconds, short=True)


def measure_shares(report, programs, rounds, seconds, temporary):
    samples = collections.defaultdict(list)  # (load, balance, what) -> (least, most) share in each round
    counting, gaps, counts = os.path.join(APPS, "counting.js"), {}, {}
    for balance in BALANCES:
        path = os.path.join(temporary, f"counts-{balance}")
        try:
            programs["wrk"]
            app = [programs["node"], counting, "PORT"]
            argv = [programs["panzer"], "-q", "-n", str(WORKERS), "--balance", balance, "--", *app]
            server = Server(argv, f"{path}.log", {"BENCH_COUNTS": path}, WORKERS)
            counts[balance] = Counts(server, path)
        except LookupError as missing:
            gaps[balance] = f"absent ({missing})"
        except Failed as failed:
            gaps[balance] = str(failed)

    for turn in range(rounds):
        for number, name in enumerate(LOADS):
            for balance in [balance for balance in BALANCES if balance not in gaps]:
                try:
                    counts[balance].take()  # what was before does not count
                    drive(programs, counts[balance].server, name, f"127.0.{3 + number}.{turn + 1}", seconds)
                    time.sleep(0.2)  # for the last ones
                    for what, numbers in zip(("connections", "requests"), counts[balance].take()):
                        in_all = max(1, sum(numbers))
                        shares = 100 * min(numbers) / in_all, 100 * max(numbers) / in_all
                        samples[name, balance, what].append(shares)
                except (Failed, OSError, subprocess.TimeoutExpired) as failed:
                    gaps[balance] = str(failed)
    kill_everything()

    for name in LOADS:
        report.section(f"shares of {WORKERS} Node workers in %, {name}")
        for balance in BALANCES:
            if balance in gaps:
                report.gap(balance, gaps[balance])
                continue
            for what in ("connections", "requests") if name == AT_ONCE else ("connections",):
                taken = samples[name, balance, what]
                least, most = [one for one, _ in taken], [other for _, other in taken]
                report.row(f"{balance}, least", least, f"{what}; {min(least):.1f} in the worst round")
                report.row(f"{balance}, most", most, f"{what}; {max(most):.1f} in the worst round")
    if not gaps:
        report.say(table(samples))


def table(samples):
    """The same for the README."""
    lines = ["", "| least and most that one of 4 Node workers got | `shared` | `per-worker` |", "| --- | --- | --- |"]
    for name in LOADS:
        cells = []
        for balance in BALANCES:
            taken = samples[name, balance, "connections"]
            cells.append(f"{median([one for one, _ in taken]):.0f} – {median([other for _, other in taken]):.0f} %")
        lines.append(f"| {name} | {cells[0]} | {cells[1]} |")
    return lines
