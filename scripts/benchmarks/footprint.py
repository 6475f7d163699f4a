"""What a supervisor takes: the size of its file, its memory, and what it does while nothing happens."""

import collections
import os
import re
import signal
import tempfile
import time

from .processes import Failed, children, comm, descendants, kill_everything, read, spawn, wait_until
from .programs import circus_config, runit_services, supervisord_config


# --- Size -----------------------------------------------------------------------------------------------


def measure_size(report, programs):
    report.section("size of the program, bytes")
    for name in ["panzer", "tini", "tini-static", "dumb-init", "catatonit"]:
        try:
            size = report.row(name, [os.stat(programs[name]).st_size])
        except LookupError:
            report.gap(name, "absent")
            continue
        if name == "panzer":
            report.budget("size of the program, bytes", size, 307200)


# --- Memory and idling with few workers -----------------------------------------------------------------


def idle_commands(programs, directory):
    """name -> (function that gives the command, how many `sleep`s it keeps, words for the table)"""
    sleep = [programs["sleep"], "1000"]

    def runit():
        def make_run(path):
            with open(path, "w") as file:
                file.write(f"#!/bin/sh\nexec {sleep[0]} {sleep[1]}\n")
            os.chmod(path, 0o755)

        programs["runsv"]
        return [programs["runsvdir"], runit_services(directory, 4, make_run)]

    def start_server():
        return [programs["start_server"], "--port=127.0.0.1:0", "--", *sleep]

    def supervisord():
        return [programs["supervisord"], "-c", supervisord_config(directory, " ".join(sleep), 4)]

    def circus():
        return [programs["circusd"], circus_config(directory, " ".join(sleep), 4)]

    return {
        "panzer -n 4": (lambda: [programs["panzer"], "-q", "-n", "4", "--", *sleep], 4, "4 workers"),
        "panzer (init)": (lambda: [programs["panzer"], "--", *sleep], 1, "1 child"),
        "tini": (lambda: [programs["tini"], "-s", "--", *sleep], 1, "1 child"),
        "tini-static": (lambda: [programs["tini-static"], "-s", "--", *sleep], 1, "1 child"),
        "dumb-init": (lambda: [programs["dumb-init"], "--", *sleep], 1, "1 child"),
        "catatonit": (lambda: [programs["catatonit"], "--", *sleep], 1, "1 child"),
        "runit": (runit, 4, "runsvdir and 4 runsv"),
        "start_server": (start_server, 1, "1 worker"),
        "supervisord": (supervisord, 4, "4 workers"),
        "circusd": (circus, 4, "4 workers"),
    }


def sleepers(pid):
    return sum(comm(child) == "sleep" for child in descendants(pid))


def supervising(pid):
    """The processes under pid that are the supervisor's own."""
    guard = guard_of(pid)
    return [pid, *(p for p in descendants(pid) if comm(p) not in ("sleep", "") and p != guard)]


def guard_of(pid):
    return next((child for child in children(pid) if comm(child) == "panzer-guard"), None)


def memory(pids):
    """(Rss, Pss) in the kernel's kB"""
    texts = [read(f"/proc/{pid}/smaps_rollup") for pid in pids]
    total = lambda field: sum(int(re.search(rf"^{field}:\s+(\d+) kB", text, re.MULTILINE)[1]) for text in texts)
    return total("Rss"), total("Pss")


def context_switches(pids):
    """Voluntary and involuntary ones, of all threads of these processes."""
    return sum(
        int(count)
        for pid in pids
        for task in os.listdir(f"/proc/{pid}/task")
        for count in re.findall(r"ctxt_switches:\s+(\d+)", read(f"/proc/{pid}/task/{task}/status"))
    )


class Resident:
    """All supervisors at once, each with its idle workers."""

    def __init__(self, programs, directory):
        self.pids, self.words, self.gaps = {}, {}, {}
        expected = {}
        for name, (command, count, words) in idle_commands(programs, directory).items():
            self.words[name], expected[name] = words, count
            try:
                argv = command()
            except LookupError:
                self.gaps[name] = "absent"
                continue
            self.pids[name] = spawn(argv, log=os.path.join(directory, f"{name}.log"))
        for name, pid in list(self.pids.items()):
            try:
                wait_until(lambda: sleepers(pid) == expected[name], 10, "its workers run")
            except Failed as failed:
                self.gaps[name] = f"failed: {failed}"
                del self.pids[name]

    def groups(self):
        """who -> the processes that are counted together"""
        found = {}
        for name in self.words:
            pid = self.pids.get(name)
            found[name] = supervising(pid) if pid else None
            guard = guard_of(pid) if pid else None
            if guard:
                found[f"{name}, its guard"] = [guard]
        return found


def measure_resident(report, programs, rounds, idle_seconds, temporary):
    samples = collections.defaultdict(list)
    for last in [False] * (rounds - 1) + [True]:
        resident = Resident(programs, tempfile.mkdtemp(dir=temporary))
        time.sleep(2)
        groups = resident.groups()
        for who, pids in groups.items():
            if pids:
                samples[who].append(memory(pids))
        if not last:
            kill_everything()

    for figure, field in [("Rss", 0), ("Pss", 1)]:
        report.section(f"resident memory of the supervisor, {figure} in kB, two seconds after its start")
        for who, pids in groups.items():
            if not pids:
                report.gap(who, resident.gaps[who])
                continue
            value = report.row(who, [sample[field] for sample in samples[who]], resident.words.get(who, ""))
            if who == "panzer -n 4" and figure == "Rss":
                report.budget("Rss with 4 idle workers, kB", value, 200)
        if "panzer -n 4" in resident.gaps and figure == "Rss":
            report.budget("Rss with 4 idle workers, kB", None, 200)

    # The last round's processes idle on. strace gets a panzer of its own: to be traced is to be switched.
    traced = spawn([programs["panzer"], "-q", "-n", "4", "--", programs["sleep"], "1000"])
    time.sleep(3)
    trace = IdleTrace(programs, traced, temporary)
    before = {who: context_switches(pids) for who, pids in groups.items() if pids}
    time.sleep(idle_seconds)
    after = {who: context_switches(pids) for who, pids in groups.items() if pids}

    report.section(f"context switches in {idle_seconds} idle seconds")
    of_panzer = None
    for who, pids in groups.items():
        if not pids:
            report.gap(who, resident.gaps[who])
            continue
        switches = report.row(who, [after[who] - before[who]], resident.words.get(who, ""))
        if who.startswith("panzer -n 4"):
            of_panzer = (of_panzer or 0) + switches
    report.budget(f"context switches in {idle_seconds} idle s, with the guard", of_panzer, 0)

    report.section(f"system calls in {idle_seconds} idle seconds, by strace")
    who, calls = "panzer -n 4, its guard", None
    try:
        calls = report.row(who, [len(trace.calls())], "both together")
        for call in trace.calls()[:5]:
            print(f"    {call}")
    except LookupError:
        report.gap(who, "absent (strace)")
    except Failed as failed:
        report.gap(who, f"failed: {failed}")
    report.budget(f"system calls in {idle_seconds} idle s, with the guard", calls, 0)
    kill_everything()


class IdleTrace:
    """What a panzer and its guard ask of the kernel from now until calls() is called."""

    def __init__(self, programs, pid, temporary):
        self.why = None
        try:
            strace = programs["strace"]
        except LookupError as error:
            self.why = error
            return
        pids = [pid, guard_of(pid)]
        self.path = os.path.join(temporary, "trace")
        which = [argument for pid in pids if pid for argument in ("-p", str(pid))]
        self.strace = spawn([strace, "-f", "-ttt", "-T", "-o", self.path, *which])
        traced = lambda pid: "TracerPid:\t0\n" not in read(f"/proc/{pid}/status")
        try:
            wait_until(lambda: all(traced(pid) for pid in pids if pid), 5, "strace attaches")
        except (Failed, OSError) as error:
            self.why = Failed(error)
        # Attaching interrupts the call that a process sleeps in (epoll_wait then ends with EINTR and is
        # called anew), which is our doing. What comes after this moment is not.
        time.sleep(0.5)
        self.start = time.time()
        self.found = None

    def calls(self):
        if self.why:
            raise self.why
        if self.found is None:
            os.kill(self.strace, signal.SIGTERM)
            os.waitpid(self.strace, 0)
            self.found = [line for line in read(self.path).splitlines() if self.happened_since(line)]
        return self.found

    def happened_since(self, line):
        """Whether a call was begun or ended, or a signal came, after the start."""
        match = re.match(r"\d+\s+(\d+\.\d+) (.*?)(?:<(\d+\.\d+)>)?$", line)
        if not match:
            return True  # never hide what is not understood
        at, call, duration = float(match[1]), match[2], float(match[3] or 0)
        # A line is dated with the begin of its call, but `<... call resumed>` with its end.
        return (at if call.startswith("<...") else at + duration) >= self.start


# --- Memory for each worker -----------------------------------------------------------------------------


def measure_memory_per_worker(report, programs):
    report.section("memory that each further worker costs, bytes (Rss at 1000 less Rss at 4, by 996)")
    title, rss = "memory for each worker, bytes", {}
    try:
        for count in (4, 1000):
            argv = [programs["panzer"], "-q", "-n", str(count), "--ready", "exec", "--", programs["sleep"], "2000"]
            pid = spawn(argv)
            wait_until(lambda: sleepers(pid) == count, 30, f"{count} workers run")
            time.sleep(1)
            guard = guard_of(pid)
            rss[count] = memory([pid])[0], memory([guard])[0] if guard else 0
            kill_everything()
    except Failed as failed:
        kill_everything()
        report.gap("panzer", f"failed: {failed}")
        report.budget(title, None, 1000)
        return
    for field, who in enumerate(["panzer", "its guard"]):
        few, many = rss[4][field], rss[1000][field]
        each = report.row(who, [(many - few) * 1024 / 996], f"{few} kB at 4, {many} kB at 1000")
        if who == "panzer":
            report.budget(title, each, 1000, met=lambda value, limit: value < limit)
