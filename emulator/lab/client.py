"""Speaks to a lab's API socket: HTTP over a Unix socket, errors raised again as what they were."""

from __future__ import annotations

import http.client
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import msgspec

from emulator.errors import NotFound, SandboxError, UserError
from emulator.lab.wire import error_from_wire

CHUNK = 256 * 1024  # bytes
ENDLESS = float("inf")  # seconds to wait for an answer that may be silent for any time


class _Connection(http.client.HTTPConnection):
    """HTTP to a socket file instead of a host and port."""

    def __init__(self, path: str, timeout: float | None) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        # By a descriptor of its directory: an address has room for 107 bytes, and the path may be longer
        directory, name = os.path.split(self._path)
        there = os.open(directory or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self.sock.connect(f"/proc/self/fd/{there}/{name}")
        finally:
            os.close(there)


class Client:
    """One lab's API. Each request uses its own connection: a local one costs 50 us, and none is ever half-used."""

    def __init__(self, socket_path: str, timeout: float | None = 120.0) -> None:
        self._path = socket_path
        self._timeout = timeout
        self.warnings: dict[str, None] = {}  # what the lab said beside its answers, each once, in order

    def call(self, method: str, path: str, data: Any = None, *, timeout: float | None = None) -> Any:
        """Send JSON, return the decoded answer. Raises what the lab raised, SandboxError if there is no lab."""
        with self._response(method, path, data, timeout) as response:
            body = response.read()
        return msgspec.json.decode(body) if body else None

    def raw(self, path: str) -> bytes:
        """The undecoded body of a GET."""
        with self._response("GET", path, None, None) as response:
            return response.read()

    def download(self, path: str, target: BinaryIO) -> None:
        """Copy the body of a GET to a file, in pieces, as they come; for endless streams too."""
        with self._response("GET", path, None, ENDLESS) as response:
            while chunk := response.read1(CHUNK):
                target.write(chunk)
                target.flush()

    def lines(self, path: str) -> Iterator[Any]:
        """The JSON lines of an endless answer, as they come."""
        with self._response("GET", path, None, ENDLESS) as response:
            for line in response:
                if line.strip():
                    yield msgspec.json.decode(line)

    @contextmanager
    def _response(self, method: str, path: str, data: Any, timeout: float | None) -> Iterator[http.client.HTTPResponse]:
        connection = _Connection(self._path, None if timeout == ENDLESS else timeout or self._timeout)
        try:
            try:
                body = None if data is None else msgspec.json.encode(data)
                connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
                response = connection.getresponse()
            except (FileNotFoundError, ConnectionRefusedError):
                raise NotFound("the lab is gone", hint="`cnilab ls` shows what runs") from None
            except PermissionError:
                raise UserError(f"{self._path} belongs to another user", hint="a lab obeys its owner alone") from None
            except TimeoutError:
                raise SandboxError(f"the lab did not answer {method} {path} in time") from None
            except (ConnectionError, http.client.HTTPException) as error:
                raise SandboxError(f"the lab went away in the middle of {method} {path}: {error}") from None
            for text in response.headers.get_all("Warning") or ():
                self.warnings[text.partition('"')[2].rstrip('"')] = None
            try:
                if response.status >= 400:
                    status = msgspec.json.decode(response.read())
                    raise error_from_wire(status.get("cnilab") or {"message": status.get("message", "unknown error")})
                yield response
            except (http.client.HTTPException, ConnectionResetError) as error:
                raise SandboxError(f"the lab went away in the middle of {method} {path}: {error}") from None
        finally:
            connection.close()
