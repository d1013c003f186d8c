"""HTTP/1.1 on the lab's Unix socket: reads requests, whatever they are, and writes what the API answers.

Every answer carries the lab's warnings as ``Warning: 299`` headers, which is how the API server warns and what kubectl
prints (RFC 7234, section 5.5; KEP-1693).
"""

from __future__ import annotations

import os
import select
import socket
import socketserver
from http.server import BaseHTTPRequestHandler
from typing import Any

import msgspec

from emulator.lab.api import JSON, Api, ApiError, Stream, failure

MAX_BODY = 64 * 1024 * 1024  # bytes: ten thousand generous objects
IDLE = 300.0  # seconds that a connection may be silent between two requests, or within one


class Handler(BaseHTTPRequestHandler):
    """Speaks HTTP/1.1 for :class:`Server`'s ``api``."""

    protocol_version = "HTTP/1.1"
    timeout = IDLE
    server: Server

    def _serve(self) -> None:
        try:
            body = self._body()
        except ApiError as error:
            self.close_connection = True  # what is left of the request cannot be told from the next one
            self._send(*failure(error))
            return
        code, answer = self.server.api.handle(self.command, self.path, body, dict(self.headers.items()))
        if isinstance(answer, Stream):
            self._send_stream(answer)
        else:
            self._send(code, answer)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815 - the names that http.server looks for

    def _body(self) -> bytes:
        """The request's body, of a stated length or in chunks. Raises ApiError."""
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            return self._chunks()
        text = self.headers.get("Content-Length", "0")
        if not (text.isascii() and text.isdigit()):
            raise ApiError(400, "BadRequest", f"{text!r} is no length of a body")
        length = int(text)
        if length > MAX_BODY:
            raise _too_large()
        body = self.rfile.read(length)
        if len(body) < length:
            raise ApiError(400, "BadRequest", f"the body ended after {len(body)} of {length} bytes")
        return body

    def _chunks(self) -> bytes:
        body = bytearray()
        while True:
            line = self.rfile.readline(1024).partition(b";")[0].strip()
            try:
                size = int(line, 16)
            except ValueError:
                raise ApiError(400, "BadRequest", "a chunk of the body has no size") from None
            if size < 0 or len(body) + size > MAX_BODY:
                raise _too_large()
            if size == 0:
                break
            body += self.rfile.read(size)
            self.rfile.readline(1024)
        while self.rfile.readline(65536).strip():
            pass  # trailers
        return bytes(body)

    def _send(self, code: int, data: Any) -> None:
        body = msgspec.json.encode(data)
        self.send_response(code)
        self._warn()
        self.send_header("Content-Type", JSON)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _send_stream(self, stream: Stream) -> None:
        """Send what comes, until it ends or nobody listens any more."""
        try:
            self.send_response(200)
            self._warn()
            self.send_header("Content-Type", stream.content_type)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.flush()
            for chunk in stream.chunks:
                if chunk:
                    self.wfile.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
                    self.wfile.flush()
                elif self._deserted():
                    raise ConnectionResetError
            self.wfile.write(b"0\r\n\r\n")
        except (BrokenPipeError, ConnectionResetError, TimeoutError):
            self.close_connection = True
        finally:
            close = getattr(stream.chunks, "close", None)
            if close is not None:
                close()

    def _deserted(self) -> bool:
        """Whether the client has hung up."""
        if not select.select([self.connection], [], [], 0)[0]:
            return False
        return not self.connection.recv(1, socket.MSG_PEEK)

    def _warn(self) -> None:
        for text in self.server.api.warnings():
            # A header is one line, and this part of it a quoted string.
            plain = " ".join(text.split()).replace("\\", "/").replace('"', "'")
            plain = "".join(char if " " <= char <= "~" else "?" for char in plain)
            self.send_header("Warning", f'299 cnilab "{plain}"')

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What http.server itself refuses (a method that it does not know, headers without end), as a Status."""
        self.close_connection = True
        reason = {501: "MethodNotAllowed"}.get(code, "BadRequest")
        self._send(*failure(ApiError(405 if code == 501 else code, reason, message or explain or "bad request")))

    def handle(self) -> None:
        """Serve one connection. A client that hangs up in the middle is no event."""
        try:
            super().handle()
        except (ConnectionError, TimeoutError):
            self.close_connection = True

    def address_string(self) -> str:
        """There is no address behind a Unix socket."""
        return "local"

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged: the client prints what matters."""


def _too_large() -> ApiError:
    return ApiError(413, "RequestEntityTooLarge", f"the body is larger than {MAX_BODY} bytes")


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Listens on ``path``, which only its owner may use."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, path: str, api: Api) -> None:
        self.api = api
        super().__init__(path, Handler, bind_and_activate=False)
        mask = os.umask(0o177)  # the socket is 0600 from its first moment on
        try:
            self.server_bind()
        finally:
            os.umask(mask)
        self.server_activate()

    def get_request(self) -> tuple[socket.socket, Any]:
        """A Unix peer has no address; http.server wants one to print."""
        request, _ = super().get_request()
        return request, ("local", 0)
