"""Processes: starts them, looks at them in /proc, and leaves none behind."""

import ctypes
import os
import signal
import subprocess
import sys
import time


class Failed(Exception):
    """A figure that could not be taken; the text says why."""


def spawn(argv, env=None, log=os.devnull):
    """Starts argv in a session of its own, so that a Ctrl-C at the terminal reaches the bench alone."""
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        return os.posix_spawn(
            argv[0],
            argv,
            os.environ if env is None else env,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, out, 1),
                (os.POSIX_SPAWN_DUP2, out, 2),
            ],
            setsid=True,
        )
    finally:
        os.close(out)


def read(path):
    with open(path, "rb") as file:
        return file.read().decode("utf-8", "replace")


def children(pid):
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
        return [int(child) for task in tasks for child in read(f"/proc/{pid}/task/{task}/children").split()]
    except OSError:  # it has just ended
        return []


def descendants(pid):
    found = []
    for child in children(pid):
        found += [child, *descendants(child)]
    return found


def comm(pid):
    try:
        return read(f"/proc/{pid}/comm").rstrip("\n")
    except OSError:
        return ""


def become_subreaper():
    """Makes orphans of what we start our children, so that kill_everything finds them all."""
    PR_SET_CHILD_SUBREAPER = 36
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def kill_everything():
    """Ends all that the bench has started. Supervisors start anew what they see dying, hence the loop."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        for pid in descendants(os.getpid()):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.005)
    print("bench: some processes do not end", file=sys.stderr)


def wait_until(condition, seconds, what):
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise Failed(f"{what}: not within {seconds} s")
        time.sleep(0.02)


def output_of(argv):
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=20, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    lines = (done.stdout + done.stderr).strip().splitlines()  # dumb-init tells its version on stderr
    return lines[0] if lines else "?"
