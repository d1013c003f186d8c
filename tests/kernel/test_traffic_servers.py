"""Clients that misbehave, with the servers in this process so that their limits can be made small."""

from __future__ import annotations

import resource
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator

import pytest

from emulator.traffic import servers as module
from emulator.traffic.loop import Loop
from emulator.traffic.model import Server
from emulator.traffic.servers import Servers

pytestmark = pytest.mark.sandbox

HERE = "/proc/thread-self/ns/net"
WEB = Server("pod/default/web", HERE, "web", ((80, "TCP"),))


class Served:
    """Servers, and the loop that runs them, in a thread. ``notices`` is what they said."""

    def __init__(self) -> None:
        self.notices: list[str] = []
        self.loop = Loop()
        self.servers = Servers(self.loop, self.notices.append)
        self.thread = threading.Thread(target=self.loop.run, daemon=True)

    def start(self, *served: Server) -> None:
        for server in served:
            self.servers.serve(server)
        self.thread.start()


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setattr(module, "HEAD_SECONDS", 0.4)
    monkeypatch.setattr(module, "IDLE_SECONDS", 0.8)
    monkeypatch.setattr(module, "SWEEP_SECONDS", 0.05)
    monkeypatch.setattr(module, "CONNECTIONS_PER_SERVER", 4)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # as in every Python process that was not forked for a test
    served = Served()
    yield served
    served.loop.stop()


def connect() -> socket.socket:
    return socket.create_connection(("127.0.0.1", 80), timeout=3.0)


def closed_after(client: socket.socket) -> float:
    """Seconds until the server has closed the connection."""
    began = time.monotonic()
    try:
        while client.recv(65536):
            pass
    except ConnectionError:
        pass
    return time.monotonic() - began


def test_head_that_comes_byte_by_byte_is_given_up(served: Served) -> None:
    served.start(WEB)
    client = connect()
    began = time.monotonic()

    def drip() -> None:
        for byte in b"GET / HTTP/1.1\r\nX: " + b"y" * 200:
            client.send(bytes([byte]))
            time.sleep(0.02)

    with pytest.raises(ConnectionError):
        drip()
    assert 0.3 < time.monotonic() - began < 2.0
    client.close()


def test_connection_without_requests_is_closed_after_a_while(served: Served) -> None:
    served.start(WEB)
    client = connect()
    client.sendall(b"GET / HTTP/1.1\r\n\r\n")
    assert 0.6 < closed_after(client) < 2.5
    client.close()


def test_one_connection_too_many_costs_the_one_that_was_idle_longest(served: Served) -> None:
    served.start(WEB)
    clients = []
    for _ in range(5):
        client = connect()
        client.sendall(b"GET /hostname HTTP/1.1\r\n\r\n")
        clients.append(client)
        if len(clients) < 5:
            assert client.recv(4096).endswith(b"web")
    assert clients[4].recv(4096).endswith(b"web")
    assert clients[0].recv(4096) == b""
    for client in clients[1:]:
        client.sendall(b"GET /hostname HTTP/1.1\r\n\r\n")
        assert client.recv(4096).endswith(b"web")
    for client in clients:
        client.close()


def test_reader_that_is_slow_stops_the_server_from_buffering(served: Served) -> None:
    served.start(WEB)
    client = connect()
    client.sendall(b"POST /bytes HTTP/1.1\r\nContent-Length: 100000000\r\n\r\n")
    client.setblocking(False)
    sent, deadline = 0, time.monotonic() + 0.4
    while time.monotonic() < deadline:
        try:
            sent += client.send(b"x" * 65536)
        except BlockingIOError:
            time.sleep(0.01)
    assert sent < 30_000_000  # what the kernel's own buffers hold, both ways
    client.close()


def test_last_request_of_a_connection_gets_its_whole_body_back(served: Served) -> None:
    served.start(WEB)
    client = connect()
    client.sendall(b"POST /bytes HTTP/1.1\r\nConnection: close\r\nContent-Length: 6\r\n\r\nabc")
    time.sleep(0.1)
    client.sendall(b"def")
    answer = b""
    while data := client.recv(4096):
        answer += data
    assert answer.endswith(b"Connection: close\r\n\r\nabcdef")
    client.close()


def test_pipelined_requests_are_answered_in_order(served: Served) -> None:
    served.start(WEB)
    client = connect()
    for piece in (b"HEAD /hostname HTTP/1.1\r\n\r\nGET /echo?msg=a HTTP/1.1\r\n\r", b"\nGET /x HTTP/1.0\r\n\r\n"):
        client.sendall(piece)
        time.sleep(0.05)
    answer = b""
    while data := client.recv(4096):
        answer += data
    assert [part.splitlines()[-1] for part in answer.split(b"HTTP/1.1 200 OK")[1:3]] == [b"", b"a"]
    assert b"NOW: " in answer
    client.close()


def test_no_descriptor_left_is_a_notice_and_not_the_end(served: Served) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    try:
        served.start(Server("pod/default/many", HERE, "many", tuple((1000 + port, "UDP") for port in range(100))))
        assert any("no more files may be opened" in notice for notice in served.notices)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    served.servers.stop("pod/default/many")
    served.servers.serve(WEB)
    client = connect()
    client.sendall(b"GET /hostname HTTP/1.1\r\n\r\n")
    assert client.recv(4096).endswith(b"web")
    client.close()
