"""What the filter of --share-ports costs: a call that is none of its business, and one that is."""

import collections
import os
import random

from .processes import Failed, spawn
from .programs import compiled
from .report import median
from .servers import free_port

CHEAP = {"getppid": "getppid", "setsockopt": "TCP_NODELAY", "pipe": "read/write"}
BINDING = {"bind": "bind", "listen": "listen", "bind-0": "bind of port 0"}

OFF, ON = "off", "on"
INSIDE_OFF, INSIDE_ON, WATCHED = "off, in a container", "on, in a container", "on, looked at"
WORDS = {
    OFF: "--share-ports off: no filter",
    ON: "--share-ports on: panzer's filter",
    INSIDE_OFF: "under a container's filter",
    INSIDE_ON: "under both",
    WATCHED: "under both; panzer's looks at setsockopt, as for root without CAP_SYS_PTRACE",
}

# (with panzer's filter, without, the calls that it is measured for, how many nanoseconds each may cost more).
# A keep-alive request takes a Node server two calls, one on a connection of its own nine.
BUDGETS = [
    (ON, OFF, list(CHEAP), 50),
    (INSIDE_ON, INSIDE_OFF, list(CHEAP), 10),
    (WATCHED, INSIDE_OFF, ["setsockopt"], 100),
]


def variants(programs, calls):
    """name -> the beginning of the command"""
    panzer = [programs["panzer"], "-q", "-n", "1", "--restart", "never", "--share-ports"]
    off, on = [*panzer, "off", "--"], [*panzer, "on", "--"]
    filtered = [calls, "filtered"]
    found = {OFF: off, ON: on, INSIDE_OFF: [*filtered, *off], INSIDE_ON: [*filtered, *on]}
    if os.geteuid() == 0 and programs.path["setpriv"]:  # as root is in a container by default
        found[WATCHED] = [programs["setpriv"], "--bounding-set", "-sys_ptrace", *filtered, *on]
    return found


def run(argv, log):
    """name -> the figure that apps/calls.c tells of it"""
    if os.path.exists(log):
        os.remove(log)
    pid = spawn(argv, log=log)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    text = open(log).read()
    try:
        figures = {name: float(figure) for name, figure in (line.split() for line in text.splitlines())}
    except ValueError:
        figures = {}
    if status or not figures:
        raise Failed(f"failed: status {status}: {text.strip()[-200:]}")
    return figures


def measure_calls(report, programs, rounds, temporary):
    report.section("a call that is not bind, nanoseconds (the best of 250 runs of thousands)")
    calls, why = compiled("calls", temporary), None
    commands = variants(programs, calls) if calls else {}
    log, port = os.path.join(temporary, "calls.log"), str(free_port())
    samples, order, shuffle = collections.defaultdict(list), list(commands), random.Random(3).shuffle
    try:
        if not calls:
            raise Failed("absent (no C compiler)")
        for _ in range(rounds):
            shuffle(order)
            for name in order:
                for arguments in (["cheap"], ["bind", port]):
                    for call, figure in run([*commands[name], calls, *arguments], log).items():
                        samples[name, call].append(figure)
    except Failed as failed:
        report.gap("all", str(failed))
        why = failed

    for call, words in [] if why else CHEAP.items():
        for name in commands:
            over = next((without for filtered, without, _, _ in BUDGETS if filtered == name), None)
            if name == WATCHED and call != "setsockopt":
                continue
            note = WORDS[name]
            if over:
                more = difference(samples, call, name, over)
                note = f"{median(more):+.1f} ({min(more):+.1f} to {max(more):+.1f}) over {over}; {note}"
            report.row(f"{words}, {name}", samples[name, call], note)
    for filtered, without, which, limit in BUDGETS:
        if filtered == WATCHED and os.geteuid() != 0:
            continue  # only root is ever without that right
        for call in which:
            more = difference(samples, call, filtered, without)
            value = median(more) if more and not why else None
            report.budget(f"the filter's cost in ns, {CHEAP[call]}, {filtered}", value, limit)

    report.section("binding a socket, microseconds (the median of 1000 new sockets)")
    for call, words in [] if why else BINDING.items():
        for name in (OFF, ON):
            note = "panzer looks at it and passes it on" if call == "bind-0" else "panzer does it"
            report.row(f"{words}, {name}", samples[name, call], note if name == ON else "no filter")
    if why:
        report.gap("all", str(why))


def difference(samples, call, filtered, without):
    """One for each round: whatever slows the machine down slows both."""
    return [more - less for more, less in zip(samples[filtered, call], samples[without, call])]
