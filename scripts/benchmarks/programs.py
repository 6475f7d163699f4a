"""The programs that are compared: where each one is, its version, and the configuration of those that want a file."""

import json
import os
import platform
import shutil
import subprocess

from .processes import output_of

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PEERS = os.path.join(ROOT, "target", "peers")
VENV_BIN = os.path.join(PEERS, "venv", "bin")
PM2 = os.path.join(PEERS, "pm2", "node_modules", "pm2")
APPS = os.path.join(ROOT, "scripts", "benchmarks", "apps")


class Programs:
    """Where each program is (None: absent), and its version."""

    def __init__(self, panzer):
        def find(name):
            inside_venv = os.path.join(VENV_BIN, name)
            return inside_venv if os.access(inside_venv, os.X_OK) else shutil.which(name)

        names = "tini tini-static dumb-init catatonit runsvdir runsv start_server supervisord circusd gunicorn uwsgi"
        tools = "node wrk strace unshare setpriv true sleep".split()
        self.path = {"panzer": panzer, **{name: find(name) for name in [*names.split(), *tools]}}
        pm2 = os.path.join(PM2, "bin", "pm2")
        self.path["pm2"] = pm2 if os.path.exists(pm2) and self.path["node"] else None

    def __getitem__(self, name):
        if not self.path[name]:
            raise LookupError(f"{name} is not installed")
        return self.path[name]

    def versions(self):
        found = {}
        for name, path in self.path.items():
            if name in ("true", "sleep", "runsv", "unshare", "setpriv"):
                continue
            if not path:
                found[name] = "absent"
            elif name == "runsvdir":  # tells no version of its own
                found["runit"] = output_of(["dpkg-query", "-W", "-f", "${Version}", "runit"])
            elif name == "pm2":  # asked itself it would make files in the home directory
                with open(os.path.join(PM2, "package.json")) as file:
                    found[name] = json.load(file)["version"]
            else:
                option = {"supervisord": "-v", "strace": "-V", "wrk": "-v"}.get(name, "--version")
                found[name] = output_of([path, option]).split(" [")[0]  # wrk adds whose it is
        found["python"] = platform.python_version()
        return found


def compiled(name, directory):
    """The program that apps/NAME.c makes; None: there is no C compiler."""
    path, compiler = os.path.join(directory, name), shutil.which("cc")
    source = os.path.join(APPS, f"{name}.c")
    if not compiler or subprocess.run([compiler, "-O2", "-static", "-o", path, source]).returncode:
        return None
    return path


def load_client():
    """The tests' client, examples/load.rs, which unlike wrk sees a request that is never answered."""
    target = os.path.abspath(os.path.join(ROOT, os.environ.get("CARGO_TARGET_DIR", "target")))
    argv = ["cargo", "build", "--quiet", "--release", "--example", "load"]
    try:
        done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except OSError:
        raise LookupError("cargo is not installed, to make the client") from None
    if done.returncode:
        raise LookupError(f"the client cannot be made: {(done.stderr.strip().splitlines() or ['?'])[0]}")
    return os.path.join(target, "release", "examples", "load")


def supervisord_config(directory, command, count):
    path = os.path.join(directory, "supervisord.conf")
    with open(path, "w") as file:
        file.write(
            f"[supervisord]\nnodaemon=true\nlogfile=/dev/null\nlogfile_maxbytes=0\npidfile={directory}/pid\n"
            f"[program:worker]\ncommand={command}\nnumprocs={count}\nprocess_name=%(process_num)d\n"
            "stdout_logfile=NONE\nstderr_logfile=NONE\n"
        )
    return path


def circus_config(directory, command, count):
    path = os.path.join(directory, "circus.ini")
    with open(path, "w") as file:
        file.write(
            f"[circus]\nendpoint=ipc://{directory}/endpoint\npubsub_endpoint=ipc://{directory}/pubsub\n"
            f"[watcher:worker]\ncmd={command}\nnumprocesses={count}\ncopy_env=True\n"
        )
    return path


def runit_services(directory, count, make_run):
    """A directory for runsvdir; make_run(path) puts a service's program there."""
    for number in range(count):
        service = os.path.join(directory, "services", str(number))
        os.makedirs(service)
        make_run(os.path.join(service, "run"))
    return os.path.join(directory, "services")
