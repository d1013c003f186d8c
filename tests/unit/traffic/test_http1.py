from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulator.traffic import http1


def read(*pieces: bytes) -> list[http1.Request | bytes]:
    reader = http1.RequestReader()
    return [item for piece in pieces for item in reader.feed(piece)]


def test_request_is_read_with_its_headers() -> None:
    (request,) = read(b"GET /echo?msg=a HTTP/1.1\r\nHost: web\r\nX-Thing:  b \r\n\r\n")
    assert isinstance(request, http1.Request)
    assert (request.method, request.target, request.length, request.keep_alive) == ("GET", "/echo?msg=a", 0, True)
    assert request.headers == {"host": "web", "x-thing": "b"}


@given(st.lists(st.integers(1, 200), max_size=8))
def test_requests_are_the_same_however_they_are_cut(cuts: list[int]) -> None:
    data = (
        b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"
        b"POST /bytes HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello\r\nGET /b HTTP/1.0\r\n\r\n"
    )
    pieces, rest = [], data
    for cut in cuts:
        pieces.append(rest[:cut])
        rest = rest[cut:]
    items = read(*pieces, rest)
    assert [item.target for item in items if isinstance(item, http1.Request)] == ["/a", "/bytes", "/b"]
    assert b"".join(item for item in items if isinstance(item, bytes)) == b"hello"


@pytest.mark.parametrize(
    ("head", "keep_alive"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", True),
        (b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n", False),
        (b"GET / HTTP/1.0\r\n\r\n", False),
        (b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", True),
    ],
)
def test_connection_is_kept_as_the_version_says(head: bytes, keep_alive: bool) -> None:
    (request,) = read(head)
    assert isinstance(request, http1.Request)
    assert request.keep_alive is keep_alive


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"hello\r\n\r\n", 400),
        (b"GET /\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\n\r\n", 505),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nspace : x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nA: b\0c\r\n\r\n", 400),
        (b"G\x01T / HTTP/1.1\r\n\r\n", 400),
        (b"GET nowhere HTTP/1.1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: -5\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 99999999999999\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 411),
        (b"GET / HTTP/1.1\r\nX: " + b"y" * 20_000, 431),
        (b"GET / HTTP/1.1\r\nX: " + b"y" * 20_000 + b"\r\n\r\n", 431),
    ],
)
def test_what_is_no_request_gets_its_status(data: bytes, status: int) -> None:
    with pytest.raises(http1.BadRequest) as caught:
        read(data)
    assert caught.value.status == status


def test_absolute_target_is_cut_to_its_path() -> None:
    for target in (b"http://web:80/hostname", b"HTTP://web/hostname"):
        (request,) = read(b"GET " + target + b" HTTP/1.1\r\n\r\n")
        assert isinstance(request, http1.Request)
        assert request.target == "/hostname"


@given(st.binary(max_size=2000))
def test_garbage_is_refused_or_waited_for(data: bytes) -> None:
    try:
        read(data)
        status = 0
    except http1.BadRequest as error:
        status = error.status
    assert status in (0, 400, 411, 413, 431, 505)


@given(st.sampled_from([200, 404, 418, 599]), st.binary(max_size=500))
def test_response_is_read_back(status: int, body: bytes) -> None:
    buffer = bytearray(http1.response(status, body))
    head = http1.take_response(buffer)
    assert head == http1.ResponseHead(status, len(body))
    assert bytes(buffer) == body


def test_answer_to_head_counts_its_body_and_leaves_it_out() -> None:
    answer = http1.response(200, b"12345", head_only=True)
    assert b"Content-Length: 5\r\n" in answer
    assert answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize("data", [b"SSH-2.0-x\r\n", b"HTTP/2 200\r\n\r\n", b"HTTP/1.1 xyz\r\n\r\n", b"\0\0\0"])
def test_what_is_no_response_is_told(data: bytes) -> None:
    with pytest.raises(ValueError, match="not HTTP"):
        http1.take_response(bytearray(data))


@given(st.binary(max_size=400))
def test_part_of_a_response_is_waited_for(data: bytes) -> None:
    buffer = bytearray(data)
    try:
        head = http1.take_response(buffer)
    except ValueError:
        return
    assert head is not None or bytes(buffer) == data
