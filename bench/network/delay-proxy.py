#!/usr/bin/env python3
"""A TCP proxy that hands on what the client says a little later than it came, as a long way would: for bench:network.

Usage: delay-proxy.py LISTEN-PORT SERVER-PORT DELAY-MS PID-FILE, all on loopback. The whole delay of a round trip is in
the way to the server; what the server says goes through a pipe inside the kernel (splice(2)), so that the proxy is not
what is measured.
"""

import fcntl
import os
import queue
import socket
import sys
import threading
import time

PIPE_BYTES = 1024 * 1024
CHUNK_BYTES = 256 * 1024
# More than this on its way, and the sender waits: what a link holds is bounded too.
CHUNKS_ON_THE_WAY = 1024
F_SETPIPE_SZ = 1031


def end(*sockets):
    for each in sockets:
        try:
            each.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


def late(client, server, delay):
    """Client to server."""
    way = queue.Queue(CHUNKS_ON_THE_WAY)

    def arrive():
        while True:
            due, data = way.get()
            time.sleep(max(0, due - time.monotonic()))
            try:
                if not data:
                    server.shutdown(socket.SHUT_WR)
                    return
                server.sendall(data)
            except OSError:
                end(client, server)
                if not data:
                    return

    threading.Thread(target=arrive, daemon=True).start()
    while True:
        try:
            data = client.recv(CHUNK_BYTES)
        except OSError:
            data = b''
        way.put((time.monotonic() + delay, data))
        if not data:
            return


def at_once(server, client):
    """Server to client."""
    out, into = os.pipe()
    fcntl.fcntl(into, F_SETPIPE_SZ, PIPE_BYTES)
    try:
        while (count := os.splice(server.fileno(), into, PIPE_BYTES)) > 0:
            while count > 0:
                count -= os.splice(out, client.fileno(), count)
    except OSError:
        pass
    os.close(out)
    os.close(into)
    end(client, server)


def main():
    listen, port, delay = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]) / 1000
    listener = socket.create_server(('127.0.0.1', listen), backlog=64)
    with open(sys.argv[4], 'w', encoding='ascii') as file:
        file.write(str(os.getpid()))
    while True:
        client, _ = listener.accept()
        try:
            server = socket.create_connection(('127.0.0.1', port))
        except OSError:
            client.close()
            continue
        for each in (client, server):
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=late, args=(client, server, delay), daemon=True).start()
        threading.Thread(target=at_once, args=(server, client), daemon=True).start()


main()
