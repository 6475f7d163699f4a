"""Start-up: how much longer `true` takes from its start to its end with an init in front of it."""

import collections
import gc
import os
import random
import subprocess
import time

from .processes import Failed, spawn

BARE = "the bare command"


def time_of(argv):
    """Microseconds from spawn to end."""
    start = time.perf_counter_ns()
    pid = spawn(argv)
    _, status = os.waitpid(pid, 0)
    end = time.perf_counter_ns()
    if status:
        raise Failed(f"failed: ended with status {os.waitstatus_to_exitcode(status)}")
    return (end - start) / 1000


def measure_startup(report, programs, rounds, prefix, where):
    """Where `prefix` is not empty it makes the command PID 1 of a namespace, and is part of the bare command."""
    report.section(f"start-up over the bare command `true`, {where}, microseconds")
    subreaper = [] if prefix else ["-s"]  # tini that is not PID 1 wants to be told; catatonit does it unasked
    options = {
        "panzer": ["--"],
        "tini": [*subreaper, "--"],
        "tini-static": [*subreaper, "--"],
        "dumb-init": ["--"],
        "catatonit": ["--"],
    }
    commands, gaps = {BARE: [*prefix, programs["true"]]}, {}
    for name, arguments in options.items():
        try:
            commands[name] = [*prefix, programs[name], *arguments, programs["true"]]
            time_of(commands[name])  # also a first, cold run that does not count
        except LookupError:
            gaps[name] = "absent"
        except Failed as failed:
            gaps[name] = str(failed)
            del commands[name]

    samples = collections.defaultdict(list)
    order = list(commands)
    shuffle = random.Random(1).shuffle
    gc.disable()
    for _ in range(rounds):
        shuffle(order)  # so that no program always runs after the same other one
        taken = {name: time_of(commands[name]) for name in order}
        for name, value in taken.items():
            samples[name].append(value if name == BARE else value - taken[BARE])
    gc.enable()

    report.row(BARE, samples[BARE], "in all; the others over this one")
    medians = {}
    for name in options:
        if name in gaps:
            report.gap(name, gaps[name])
        else:
            medians[name] = report.row(name, samples[name])
    marks = [medians[name] for name in ("tini", "catatonit") if name in medians]
    words = "the slower of tini and catatonit"
    report.budget(f"start-up {where}, us", medians.get("panzer"), max(marks, default=None), words=words)


def pid_1_prefix(programs):
    """A command that runs another one as PID 1 with a /proc of its own, as in a container; None: not possible."""
    try:
        unshare = programs["unshare"]
    except LookupError:
        return None
    for rights in ([], ["--map-root-user"]):  # the second one for who is not root
        prefix = [unshare, *rights, "--pid", "--fork", "--mount-proc"]
        if subprocess.run([*prefix, programs["true"]], stderr=subprocess.DEVNULL).returncode == 0:
            return prefix
    return None
