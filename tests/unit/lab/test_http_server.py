"""HTTP as clients really speak it, and misspeak it."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from emulator.lab.api import Api
from emulator.lab.client import Client
from emulator.lab.http_server import MAX_BODY, Server
from emulator.lab.runtime import Runtime

PODS = "/api/v1/namespaces/default/pods"
POD = b'{"metadata":{"name":"web"},"spec":{"containers":[{"name":"c","image":"x"}]}}'


@pytest.fixture
def path(runtime: Runtime, tmp_path: Path) -> Iterator[str]:
    server = Server(str(tmp_path / "s"), Api(runtime, [], lambda: ['bird in "node/n1" died:\n\x1b[31mBOOM', "é"]))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield str(tmp_path / "s")
    server.shutdown()
    thread.join()
    server.server_close()


class Raw:
    """A connection that sends what it is told and reads whole answers."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(5)
        self.socket.connect(path)
        self.file = self.socket.makefile("rb")

    def ask(self, data: bytes) -> tuple[int, dict[str, str], Any]:
        self.socket.sendall(data)
        code = int(self.file.readline().split()[1])
        headers = {}
        while line := self.file.readline().strip():
            name, _, value = line.decode().partition(": ")
            headers[name] = value
        return code, headers, json.loads(self.file.read(int(headers["Content-Length"])))

    def over(self) -> bool:
        """Whether the server has hung up."""
        return self.file.read(1) == b""


@pytest.fixture
def raw(path: str) -> Iterator[Raw]:
    connection = Raw(path)
    yield connection
    connection.file.close()
    connection.socket.close()


def post(body: bytes, *headers: str) -> bytes:
    lines = [f"POST {PODS} HTTP/1.1", "Host: lab", "Content-Type: application/json", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def test_socket_is_its_owners_alone(path: str) -> None:
    assert Path(path).stat().st_mode & 0o777 == 0o600


def test_connection_serves_many_requests(raw: Raw) -> None:
    for _ in range(3):
        assert raw.ask(b"GET /version HTTP/1.1\r\nHost: lab\r\n\r\n")[0] == 200


def test_body_may_come_in_chunks(raw: Raw) -> None:
    chunks = b"".join(b"%x;ext=1\r\n%b\r\n" % (len(part), part) for part in (POD[:10], POD[10:]))
    code, _, answer = raw.ask(post(chunks + b"0\r\nTrailer: x\r\n\r\n", "Transfer-Encoding: chunked"))
    assert (code, answer["metadata"]["name"]) == (201, "web")
    assert raw.ask(b"GET /version HTTP/1.1\r\nHost: lab\r\n\r\n")[0] == 200  # nothing of the body was left over


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (post(b"", f"Content-Length: {MAX_BODY + 1}"), 413),
        (post(b"%x\r\n" % (MAX_BODY + 1), "Transfer-Encoding: chunked"), 413),
        (post(b"", "Content-Length: -1"), 400),
        (post(b"", "Content-Length: many"), 400),
        (post(b"zz\r\n", "Transfer-Encoding: chunked"), 400),
        (b"BREW /pot HTTP/1.1\r\nHost: lab\r\n\r\n", 405),
        (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n", 414),
    ],
)
def test_request_that_cannot_be_read_is_refused_with_a_status_and_the_connection_ends(
    raw: Raw, request_: bytes, code: int
) -> None:
    answer = raw.ask(request_)
    assert (answer[0], answer[2]["kind"], answer[2]["code"]) == (code, "Status", code)
    assert raw.over()


def test_bad_json_is_refused_and_the_connection_lives(raw: Raw) -> None:
    assert raw.ask(post(b"{nope", "Content-Length: 5"))[0] == 400
    assert raw.ask(b"GET /version HTTP/1.1\r\nHost: lab\r\n\r\n")[0] == 200


def test_warnings_of_the_lab_come_with_every_answer_on_one_clean_line(path: str) -> None:
    client = Client(path)
    client.call("GET", "/version")
    client.call("GET", "/version")
    first, second = client.warnings
    assert first == "bird in 'node/n1' died: ?[31mBOOM"
    assert second == "?"


def test_a_socket_with_a_longer_path_than_an_address_holds_is_reached(path: str, tmp_path: Path) -> None:
    far = tmp_path / ("a-long-name" * 10)
    far.symlink_to(Path(path).parent)
    assert Client(str(far / Path(path).name)).call("GET", "/version") == Client(path).call("GET", "/version")


def test_watch_of_a_client_that_hangs_up_ends(path: str, raw: Raw) -> None:
    raw.socket.sendall(f"GET {PODS}?watch=1 HTTP/1.1\r\nHost: lab\r\n\r\n".encode())
    assert raw.file.readline().startswith(b"HTTP/1.1 200")
    before = threading.active_count()
    raw.file.close()
    raw.socket.close()
    deadline = time.monotonic() + 5
    while threading.active_count() >= before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threading.active_count() < before


def test_watch_delivers_a_change_as_it_happens(path: str, runtime: Runtime) -> None:
    lines = Client(path).lines(f"{PODS}?watch=1&resourceVersion={runtime.store.version}&timeoutSeconds=5")
    threading.Timer(0.1, lambda: runtime.apply([{"apiVersion": "v1", "kind": "Pod", **json.loads(POD)}])).start()
    started = time.monotonic()
    event = next(lines)
    assert (event["type"], event["object"]["metadata"]["name"]) == ("ADDED", "web")
    assert time.monotonic() - started < 2
