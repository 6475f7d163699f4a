"""Servers under load: starting them on a port of their own, and the client."""

import collections
import os
import random
import re
import resource
import socket
import subprocess
import time

from .processes import Failed, children, descendants, read, spawn, wait_until


def free_port():
    """Not one of those that the kernel takes for the clients."""
    low = int(open("/proc/sys/net/ipv4/ip_local_port_range").read().split()[0])
    for _ in range(100):
        port = random.randrange(10000, min(low, 32000))
        with socket.socket(socket.AF_INET6) as trial:  # both for IPv4 and for IPv6
            try:
                trial.bind(("::", port))
                return port
            except OSError:
                pass
    raise Failed("failed: there is no free port")


def answers(port):
    try:
        with socket.create_connection(("127.0.0.1", port), 1) as connection:
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            return re.match(rb"HTTP/1\.[01] 200", connection.recv(1000)) is not None
    except OSError:
        return False


class Server:
    """A server that was started by argv, which has the word PORT in place of the port."""

    def __init__(self, argv, log, env=None, workers=None):
        self.port = free_port()
        argv = [argument.replace("PORT", str(self.port)) for argument in argv]
        before = set(descendants(os.getpid()))
        self.pid = spawn(argv, {**os.environ, **(env or {})}, log)
        try:
            wait_until(lambda: answers(self.port), 15, "it answers")
            if workers:  # how many there must be, and then a moment for the last one to take part
                wait_until(lambda: len(self.workers()) == workers, 10, f"{workers} workers run")
            time.sleep(1)
            self.processes = set(descendants(os.getpid())) - before  # pm2's are no children of what was started
        except Failed as failed:
            raise Failed(f"failed: {failed}; see {log}") from None

    def cpu_time(self):
        """Seconds that all its processes have had so far."""
        return sum(map(cpu_time, self.processes))

    def workers(self):
        """The processes that panzer keeps."""
        return [pid for pid in children(self.pid) if name_of_program(pid) == "node"]


def name_of_program(pid):
    try:
        return os.path.basename(os.readlink(f"/proc/{pid}/exe"))
    except OSError:
        return ""


def cpu_time(pid):
    try:
        fields = read(f"/proc/{pid}/stat").rsplit(")", 1)[1].split()
    except OSError:
        return 0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def cpu_time_of_clients():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


Load = collections.namedtuple("Load", "rate server_cpu client_cpu")


def load(programs, server, address, connections, seconds, short):
    """Requests per second that wrk gets answered, and microseconds of CPU time for each on both sides.

    A loopback address of its own for each run keeps what one has left in TIME_WAIT out of the next one's way.
    """
    header = ["-H", "Connection: close"] if short else []
    url = f"http://{address}:{server.port}/"
    argv = [programs["wrk"], "-t", "1", "-c", str(connections), "-d", f"{seconds}s", *header, url]
    server_before, client_before = server.cpu_time(), cpu_time_of_clients()
    done = subprocess.run(argv, capture_output=True, text=True, timeout=seconds + 30, stdin=subprocess.DEVNULL)
    rate = re.search(r"^Requests/sec:\s+([\d.]+)$", done.stdout, re.MULTILINE)
    if not rate or not float(rate[1]):
        raise Failed(f"failed: wrk says: {(done.stdout + done.stderr).strip()[-200:]}")
    errors = re.search(r"^\s*(Socket errors|Non-2xx).*$", done.stdout, re.MULTILINE)
    if errors:
        raise Failed(f"failed: wrk says: {errors[0].strip()}")
    each = 1e6 / int(re.search(r"^\s*(\d+) requests in", done.stdout, re.MULTILINE)[1])
    server_cpu = (server.cpu_time() - server_before) * each
    return Load(float(rate[1]), server_cpu, (cpu_time_of_clients() - client_before) * each)
