"""What Kubernetes' test image ``agnhost netexec`` answers over HTTP and UDP, as pure functions.

HTTP: ``/`` (and any path that is not known: ``NOW: <time>``), ``/hostname``, ``/hostName``, ``/clientip``
(``address:port``), ``/echo?msg=&code=``, ``/healthz``, ``/header?key=``, ``/redirect?location=&code=``. What would run
commands or end the server (``/shell``, ``/exit``, ``/shutdown``, ``/upload``, ``/dial``) is answered with 403.
One path is ours: ``POST /bytes`` sends the body back, so that a payload's way both there and back is checked.

UDP: the datagrams ``hostname``, ``clientip`` and ``echo <message>``. A probe of ours sends ``echo cl:<nonce>``, to
which a real agnhost answers ``cl:<nonce>``, and we ``cl:<nonce> <hostname> <client>``: one round trip tells who
answered and whose address it saw.

Source: kubernetes/kubernetes test/images/agnhost/netexec/netexec.go.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import parse_qs

NONCE_DIGITS = 8
_PROBE = b"echo cl:"
_ANSWER = b"cl:"
_PADDING = b"."
_REFUSED = frozenset({"/shell", "/exit", "/shutdown", "/upload", "/dial"})

BYTES_PATH = "/bytes"


class Answer(NamedTuple):
    """An HTTP answer without its framing. ``headers`` are further ones, as (name, value)."""

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


def http_answer(
    method: str, target: str, headers: Mapping[str, str], hostname: str, client: tuple[str, int], now: str
) -> Answer:
    """Answer one request. ``headers`` have names in lower case; ``client`` is whom the server sees."""
    path, _, query = target.partition("?")
    if method not in ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        return Answer(501, b"")
    if path in ("/hostname", "/hostName"):
        return Answer(200, hostname.encode())
    if path == "/clientip":
        return Answer(200, host_port(client).encode())
    if path == "/healthz":
        return Answer(200, b"")
    if path == "/echo":
        return _echo(query)
    if path == "/header":
        return Answer(200, headers.get(_first(query, "key").lower(), "").encode("latin-1", "replace"))
    if path == "/redirect":
        return _redirect(query)
    if path in _REFUSED:
        return Answer(403, b"not offered here\n")
    return Answer(200, f"NOW: {now}".encode())


def udp_answer(datagram: bytes, hostname: str, client: tuple[str, int]) -> bytes | None:
    """Answer one datagram; None: agnhost keeps silent."""
    if datagram.startswith(_PROBE):
        answer = b"%s %s %s" % (
            datagram[5:][: len(_ANSWER) + NONCE_DIGITS],
            hostname.encode(),
            host_port(client).encode(),
        )
        missing = len(datagram) - len(answer) - 1
        # As long as the question, so that both ways are tested with that size.
        return answer + b" " + _PADDING * missing if missing >= 0 else answer
    text = datagram.strip().lower()  # agnhost does so, and therefore echoes in lower case
    if text == b"hostname":
        return hostname.encode()
    if text == b"clientip":
        return host_port(client).encode()
    if text.startswith(b"echo "):
        return text[5:]
    return None


def udp_probe(nonce: int, size: int) -> bytes:
    """The datagram of a probe: ``size`` bytes, or the shortest form if that is 0."""
    shortest = b"%s%08x" % (_PROBE, nonce)
    if size <= len(shortest):
        return shortest
    return shortest + b" " + _PADDING * (size - len(shortest) - 1)


class UdpEcho(NamedTuple):
    """What came back for a probe; a real agnhost leaves ``hostname`` and ``client`` empty."""

    nonce: int
    hostname: str
    client: str


def parse_udp_echo(datagram: bytes) -> UdpEcho | None:
    """The answer to :func:`udp_probe`, or None if it is something else."""
    words = datagram[:1024].split(b" ")
    nonce = _nonce(words[0], _ANSWER)
    if nonce is None:
        return None
    if len(words) < 3 or words[1].startswith(_PADDING):
        return UdpEcho(nonce, "", "")
    return UdpEcho(nonce, words[1].decode("utf-8", "replace"), words[2].decode("utf-8", "replace"))


def parse_udp_probe(datagram: bytes) -> int | None:
    """The nonce of a datagram made by :func:`udp_probe`, as ICMP errors quote it; None if it is something else."""
    return _nonce(datagram[: len(_PROBE) + NONCE_DIGITS][5:], _ANSWER) if datagram.startswith(_PROBE) else None


def host_port(address: tuple[str, int]) -> str:
    """As Go prints it: ``10.244.1.2:40001``, ``[fd00::2]:40001``."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def host_of(client: str) -> str:
    """The address in what :func:`host_port` made."""
    return client.rpartition(":")[0].strip("[]")


def _nonce(word: bytes, prefix: bytes) -> int | None:
    digits = word[len(prefix) :]
    if not word.startswith(prefix) or len(digits) != NONCE_DIGITS:
        return None
    try:
        return int(digits, 16)
    except ValueError:
        return None


def _first(query: str, key: str) -> str:
    try:
        return parse_qs(query, keep_blank_values=True, max_num_fields=64).get(key, [""])[0]
    except ValueError:
        return ""


def _status(code: str) -> int | None:
    """A status that an answer with a body may have (100 to 199 would not end the exchange)."""
    return int(code) if code.isascii() and code.isdigit() and len(code) == 3 and code >= "200" else None


def _echo(query: str) -> Answer:
    message = _first(query, "msg").encode("utf-8", "replace")
    code = _first(query, "code")
    if not code:
        return Answer(200, message)
    status = _status(code)
    if status is None:
        return Answer(200, f"argument 'code' must be an integer or empty, got {code!r}\n".encode())
    return Answer(status, message)


def _redirect(query: str) -> Answer:
    location = _first(query, "location")
    status = _status(_first(query, "code") or "302")
    if not location.isprintable() or not location.isascii() or status is None or not 300 <= status < 400:
        return Answer(400, b"arguments 'location' and 'code' do not make a redirect\n")
    return Answer(status, b"", (("Location", location),))
