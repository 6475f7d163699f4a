"""What the filter of --share-ports costs: a call that is none of its business, and one that is."""

import collections
import os
import random

from .processes import Failed, spawn
from .programs import compiled
from .report import median
from .servers import free_port

OFF, ON, WATCHED = "no filter", "filter", "filter, no ptrace"
CHEAP = {"getppid": "getppid", "setsockopt": "TCP_NODELAY", "pipe": "read/write 1 byte"}
BINDING = {"bind": "bind", "listen": "listen", "bind-0": "bind of port 0"}
WORDS = {
    OFF: "--share-ports off",
    ON: "--share-ports on",
    WATCHED: "on, by root without CAP_SYS_PTRACE: setsockopt is looked at too",
}

# What a call may cost more under the filter, in nanoseconds. A request takes a Node server about ten calls.
BUDGET = 50


def variants(programs):
    """name -> the beginning of the command"""
    panzer = [programs["panzer"], "-q", "-n", "1", "--restart", "never", "--share-ports"]
    found = {OFF: [*panzer, "off", "--"], ON: [*panzer, "on", "--"]}
    if os.geteuid() == 0 and programs.path["setpriv"]:
        found[WATCHED] = [programs["setpriv"], "--bounding-set", "-sys_ptrace", *found[ON]]
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
    report.section("a call that is not bind, under panzer -n 1, nanoseconds (best of 250 runs of thousands)")
    budget = lambda call, value: report.budget(f"the filter's cost, ns, {CHEAP[call]}", value, BUDGET)
    calls = compiled("calls")
    if not calls:
        report.gap("all", "absent (no C compiler)")
        for call in CHEAP:
            budget(call, None)
        return
    commands, log = variants(programs), os.path.join(temporary, "calls")
    samples, order, shuffle = collections.defaultdict(list), list(commands), random.Random(3).shuffle
    port = str(free_port())
    why = None
    for _ in range(rounds):
        shuffle(order)
        try:
            for name in order:
                for arguments in (["cheap"], ["bind", port]):
                    for call, figure in run([*commands[name], calls, *arguments], log).items():
                        samples[name, call].append(figure)
        except Failed as failed:
            why = str(failed)
            break

    for call, words in CHEAP.items():
        if why:
            report.gap(words, why)
            budget(call, None)
            continue
        for name in commands:
            if name == WATCHED and call != "setsockopt":
                continue  # the same to the kernel
            note = WORDS[name]
            if name != OFF:
                more = [filtered - plain for filtered, plain in zip(samples[name, call], samples[OFF, call])]
                note = f"{median(more):+.1f} ({min(more):+.1f} to {max(more):+.1f}); {note}"
                if name == ON:
                    budget(call, median(more))
            report.row(f"{words}, {name}", samples[name, call], note)

    report.section("binding a socket, microseconds (median of 1000, each a new socket that is closed again)")
    for call, words in BINDING.items():
        if why:
            report.gap(words, why)
            continue
        for name in (OFF, ON):
            note = "answered by panzer" if call != "bind-0" else "looked at by panzer and passed on"
            report.row(f"{words}, {name}", samples[name, call], note if name == ON else WORDS[name])
