from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulator.traffic import agnhost

V4 = ("10.244.1.2", 40001)
V6 = ("fd00::2", 40001)


def get(target: str, method: str = "GET", **headers: str) -> agnhost.Answer:
    return agnhost.http_answer(method, target, headers, "web-0", V4, "2026-01-01 00:00:00")


@pytest.mark.parametrize(
    ("target", "status", "body"),
    [
        ("/hostname", 200, b"web-0"),
        ("/hostName", 200, b"web-0"),
        ("/clientip", 200, b"10.244.1.2:40001"),
        ("/echo?msg=hello%20you", 200, b"hello you"),
        ("/echo?msg=gone&code=404", 404, b"gone"),
        ("/echo", 200, b""),
        ("/healthz", 200, b""),
        ("/", 200, b"NOW: 2026-01-01 00:00:00"),
        ("/not-known", 200, b"NOW: 2026-01-01 00:00:00"),  # agnhost's handler of / takes whatever no other one takes
        ("/shell?cmd=id", 403, b"not offered here\n"),
        ("/exit", 403, b"not offered here\n"),
        ("/redirect?location=/a\r\nX:+y", 400, b"arguments 'location' and 'code' do not make a redirect\n"),
    ],
)
def test_paths_are_answered_as_agnhost_does(target: str, status: int, body: bytes) -> None:
    answer = get(target)
    assert (answer.status, answer.body) == (status, body)


def test_header_is_told_back() -> None:
    assert get("/header?key=X-Forwarded-For", **{"x-forwarded-for": "1.2.3.4"}).body == b"1.2.3.4"


def test_redirect_names_its_location() -> None:
    assert get("/redirect?location=/echo%3Fmsg=a&code=307").headers == (("Location", "/echo?msg=a"),)


def test_ipv6_clients_are_written_in_brackets() -> None:
    assert agnhost.http_answer("GET", "/clientip", {}, "web-0", V6, "").body == b"[fd00::2]:40001"
    assert agnhost.host_of("[fd00::2]:40001") == "fd00::2"
    assert agnhost.host_of("10.0.0.1:80") == "10.0.0.1"


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        (b"hostname", b"web-0"),
        (b"hostname\n", b"web-0"),
        (b"HOSTNAME\r\n", b"web-0"),
        (b"clientip\n", b"10.244.1.2:40001"),
        (b"echo Hello You\n", b"hello you"),
        (b"echo", None),
        (b"", None),
        (b"\xff\xfe", None),
    ],
)
def test_datagrams_are_answered_as_agnhost_does(question: bytes, answer: bytes | None) -> None:
    assert agnhost.udp_answer(question, "web-0", V4) == answer


@given(st.integers(0, 0xFFFFFFFF), st.one_of(st.just(0), st.integers(16, 3000)))
def test_probe_comes_back_with_name_and_client_and_as_long_as_it_went(nonce: int, size: int) -> None:
    probe = agnhost.udp_probe(nonce, size)
    assert len(probe) == (size or 16)
    assert agnhost.parse_udp_probe(probe) == nonce
    answer = agnhost.udp_answer(probe, "web-0", V4)
    assert answer is not None
    assert agnhost.parse_udp_echo(answer) == (nonce, "web-0", "10.244.1.2:40001")
    assert len(answer) >= len(probe)
    if size > 64:
        assert len(answer) == size


@given(st.integers(0, 0xFFFFFFFF), st.one_of(st.just(0), st.integers(16, 3000)))
def test_real_agnhost_answers_our_probe_too(nonce: int, size: int) -> None:
    as_agnhost_echoes = agnhost.udp_probe(nonce, size).strip().lower().split(b" ", 1)[1]
    assert agnhost.parse_udp_echo(as_agnhost_echoes) == (nonce, "", "")


@given(st.binary(max_size=300))
def test_no_datagram_is_taken_for_what_it_is_not(data: bytes) -> None:
    agnhost.udp_answer(data, "web-0", V6)
    echo = agnhost.parse_udp_echo(data)
    assert echo is None or data.startswith(b"cl:")


@given(st.text(max_size=80), st.sampled_from(["GET", "POST", "HEAD", "BREW", ""]))
def test_any_target_has_an_answer(target: str, method: str) -> None:
    answer = get(target, method)
    assert 200 <= answer.status < 600
