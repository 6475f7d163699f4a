"""An application for gunicorn and uWSGI, booted as graceful.js is. Each answer names the process."""

import os
import time

time.sleep(float(os.environ["BENCH_BOOT"]))
with open(os.environ["BENCH_READY"], "a") as file:
    file.write(f"{os.getpid()}\n")


def application(environ, start_response):
    body = f"pid={os.getpid()}\n".encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
