"""A graceful server of two processes for Server::Starter, booted as graceful.js is. Each answer names the process."""

import os
import select
import signal
import socket
import time

WORKERS = 2


def serve(listener):
    """Takes connections until SIGTERM, which only ever interrupts the wait for one."""
    told, tell = socket.socketpair()
    told.setblocking(False)
    tell.setblocking(False)
    signal.set_wakeup_fd(tell.fileno())
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    with open(os.environ["BENCH_READY"], "a") as file:
        file.write(f"{os.getpid()}\n")
    while told not in select.select([listener, told], [], [])[0]:
        try:
            connection, _ = listener.accept()
        except BlockingIOError:  # the other process has taken it
            continue
        with connection:
            connection.setblocking(True)
            answer(connection)


def answer(connection):
    request = b""
    try:
        while b"\r\n\r\n" not in request:
            received = connection.recv(4096)
            if not received:
                return
            request += received
        body = f"pid={os.getpid()}\n"
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        connection.sendall((head + body).encode())
    except OSError:  # the client went away
        pass


def main():
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # until there is somebody to be told of it
    listener = socket.socket(fileno=int(os.environ["SERVER_STARTER_PORT"].rsplit("=", 1)[1]))
    listener.setblocking(False)
    time.sleep(float(os.environ["BENCH_BOOT"]))
    children = []
    for _ in range(WORKERS):
        child = os.fork()
        if not child:
            serve(listener)
            os._exit(0)
        children.append(child)
    signal.signal(signal.SIGTERM, lambda *_: [os.kill(child, signal.SIGTERM) for child in children])
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    for child in children:
        os.waitpid(child, 0)


main()
