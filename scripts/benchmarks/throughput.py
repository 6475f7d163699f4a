"""Requests per second of one Node server as two processes: under panzer, unmodified, and by the other ways there are.

The client needs a core too, and for a short connection as much of one as the server does: on two cores two processes
cannot serve twice what one does. So the table of the CPU time stands below that of the requests.
"""

import collections
import os
import random
import subprocess
import tempfile

from .processes import Failed, kill_everything
from .programs import APPS
from .report import median
from .servers import Server, load

CONNECTIONS = 64
ONE, HANDED = "one process", "handed a listener"
SHARED, PER_WORKER = "panzer -n 2", "panzer, per-worker"
CLUSTER, PM2 = "node:cluster", "pm2 cluster"

# How much less than a handed listener counts as the same: two rounds of the very same server differ by as much.
NOISE = 10


def contenders(programs):
    """name -> (function that gives the command and how many workers panzer has, words for the table)"""
    hello, handed, cluster = (os.path.join(APPS, f"{name}.js") for name in ("hello", "handed", "cluster"))

    def panzer(*options, app):
        return [programs["panzer"], "-q", "-n", "2", *options, "--", programs["node"], *app], 2

    return {
        ONE: (lambda: ([programs["node"], hello, "PORT"], None), "node server.js"),
        HANDED: (lambda: panzer("-l", "PORT", "--share-ports", "off", app=[handed]), "panzer -n 2 -l, by fd 3"),
        SHARED: (lambda: panzer(app=[hello, "PORT"]), "node server.js, unmodified"),
        PER_WORKER: (lambda: panzer("--balance", "per-worker", app=[hello, "PORT"]), "the same, each with a queue"),
        CLUSTER: (lambda: ([programs["node"], cluster, "PORT"], None), "cluster.fork() twice"),
        PM2: (lambda: (pm2_command(programs, "start", hello, "-i", "2", "--", "PORT"), None), "pm2 start -i 2"),
    }


def pm2_command(programs, *arguments):
    return [programs["node"], programs["pm2"], *arguments]


def measure_throughput(report, programs, rounds, seconds, temporary):
    home = tempfile.mkdtemp(dir=temporary)
    env = {"PM2_HOME": home, "PM2_DISABLE_VERSION_CHECK": "true"}
    try:
        servers, gaps = start(programs, env, temporary)
        for short in (False, True):
            measure(report, programs, servers, gaps, rounds, seconds, short)
    finally:
        if os.path.exists(os.path.join(home, "pm2.pid")):
            argv = pm2_command(programs, "kill")
            subprocess.run(argv, env={**os.environ, **env}, capture_output=True, stdin=subprocess.DEVNULL, timeout=30)
        kill_everything()


def start(programs, env, temporary):
    """All of them, since two that never run at the same time cannot be compared; who has no load sleeps."""
    servers, gaps = {}, {}
    for name, (command, _) in contenders(programs).items():
        try:
            programs["wrk"]
            argv, workers = command()
            servers[name] = Server(argv, os.path.join(temporary, f"{name}.log"), env, workers)
        except LookupError as missing:
            gaps[name] = f"absent ({missing})"
        except Failed as failed:
            gaps[name] = str(failed)
    return servers, gaps


def measure(report, programs, servers, gaps, rounds, seconds, short):
    kind = "short connections" if short else "keep-alive"
    report.section(f"requests per second, Node server of 2 processes, {kind}, {CONNECTIONS} clients (wrk, 1 thread)")
    samples, order, shuffle = collections.defaultdict(list), list(servers), random.Random(2).shuffle
    for turn in range(rounds + 1):
        shuffle(order)  # a slow moment of the machine hits all alike
        for name in [name for name in order if name not in gaps]:
            try:
                address = f"127.0.{2 if short else 1}.{turn + 1}"
                taken = load(programs, servers[name], address, CONNECTIONS, seconds, short)
            except (Failed, subprocess.TimeoutExpired) as failed:
                gaps[name] = str(failed)
                continue
            if turn:  # the first one is for the compiler in Node
                samples[name].append(taken)

    for name, (_, words) in contenders(programs).items():
        if name in gaps:
            report.gap(name, gaps[name])
            continue
        ratios = ratio_in_rounds(samples, name, ONE) if name != ONE else None
        note = f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) of {ONE}; " if ratios else ""
        report.row(name, [taken.rate for taken in samples[name]], note + words)

    report.section(f"CPU time for a request, of all processes of the server, microseconds, {kind}")
    for name in [name for name in contenders(programs) if name not in gaps]:
        report.row(name, [taken.server_cpu for taken in samples[name]])
    if samples:
        report.row("wrk", [taken.client_cpu for all_taken in samples.values() for taken in all_taken], "the client")

    def budget(other, least, met, words):
        ratios = ratio_in_rounds(samples, SHARED, other) if not {SHARED, other} & set(gaps) else None
        value = median(ratios) * 100 if ratios else None
        report.budget(f"{kind}, {SHARED} in % of {other}", value, least, met, words)

    budget(HANDED, 100 - NOISE, lambda value, least: value >= least, f"at least; {NOISE} % is noise")
    if short:
        for other in (CLUSTER, PM2):
            budget(other, 100, lambda value, least: value > least, "more than")


def ratio_in_rounds(samples, name, other):
    """One ratio for each round, so that a round in which the machine was slow tells as much as the others."""
    return [mine.rate / others.rate for mine, others in zip(samples[name], samples[other])]
