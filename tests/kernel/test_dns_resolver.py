"""The resolver in every pod, against servers of the test's own that answer, refuse, lie or say nothing."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from collections.abc import Callable

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from emulator.dns.resolv_conf import ResolvConf
from emulator.dns.resolver import resolve

pytestmark = pytest.mark.sandbox

HERE = "/proc/thread-self/ns/net"
SEARCH = ("default.svc.cluster.local", "svc.cluster.local", "cluster.local")
POD = ResolvConf(("127.0.0.1",), SEARCH, ("ndots:5", "timeout:1"))

Answering = Callable[[dns.message.Message], list[bytes]]


class FakeServer:
    """Answers UDP on port 53 of an address as it is told, and keeps what it was asked."""

    def __init__(self, address: str, answer: Answering) -> None:
        self.asked: list[tuple[str, str]] = []
        self.clients: set[int] = set()
        self._answer = answer
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sock.bind((address, 53))
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            data, client = self._sock.recvfrom(65535)
            message = dns.message.from_wire(data)
            kind = dns.rdatatype.to_text(message.question[0].rdtype)
            self.asked.append((message.question[0].name.to_text(), kind))
            self.clients.add(client[1])
            for reply in self._answer(message):
                self._sock.sendto(reply, client)


def reply(question: dns.message.Message, rcode: dns.rcode.Rcode = dns.rcode.NOERROR, *addresses: str) -> bytes:
    message = dns.message.make_response(question)
    message.set_rcode(rcode)
    kind = question.question[0].rdtype
    mine = [one for one in addresses if (":" in one) == (kind == dns.rdatatype.AAAA)]
    if mine:
        message.answer.append(dns.rrset.from_text(question.question[0].name, 30, "IN", kind, *mine))
    return message.to_wire()


@pytest.fixture(autouse=True)
def network() -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


def only(name: str, *addresses: str) -> Answering:
    def answer(question: dns.message.Message) -> list[bytes]:
        if question.question[0].name.to_text() == name:
            return [reply(question, dns.rcode.NOERROR, *addresses)]
        return [reply(question, dns.rcode.NXDOMAIN)]

    return answer


def test_a_and_aaaa_leave_side_by_side_from_one_socket() -> None:
    server = FakeServer("127.0.0.1", only("web.default.svc.cluster.local.", "10.96.1.1", "fd00::1"))
    found = resolve("web", HERE, POD)
    assert found.addresses == ("10.96.1.1", "fd00::1")
    assert (found.canonical, found.failure, found.questions) == ("web.default.svc.cluster.local", "", 2)
    assert sorted(kind for _, kind in server.asked) == ["A", "AAAA"]
    assert len(server.clients) == 1


def test_five_dots_make_eight_questions_of_a_foreign_name() -> None:
    server = FakeServer("127.0.0.1", only("www.example.com.", "203.0.113.80"))
    found = resolve("www.example.com", HERE, POD)
    assert found.addresses == ("203.0.113.80",)
    assert found.tried == (
        *((f"www.example.com.{domain}.", "NXDOMAIN") for domain in SEARCH),
        ("www.example.com.", "NOERROR"),
    )
    assert (found.questions, len(server.asked)) == (8, 8)
    assert resolve("www.example.com.", HERE, POD).questions == 2


def test_a_name_without_data_is_told_from_one_that_does_not_exist() -> None:
    FakeServer("127.0.0.1", only("web.svc.cluster.local."))
    assert resolve("web", HERE, POD).failure == "no data"
    assert resolve("nobody", HERE, POD).failure == "not found"


def test_silence_costs_two_timeouts_and_then_the_name_as_it_is() -> None:
    server = FakeServer("127.0.0.1", lambda _: [])
    began = time.monotonic()
    found = resolve("web", HERE, POD)
    assert found.failure == "timeout"
    assert [name for name, _ in found.tried] == ["web.default.svc.cluster.local.", "web."]
    assert len(server.asked) == 8  # A and AAAA, twice each, for two names
    assert time.monotonic() - began >= 4.0


def test_no_server_at_all_is_told_at_once() -> None:
    began = time.monotonic()
    assert resolve("web", HERE, ResolvConf(search=SEARCH)).failure == "refused"
    assert time.monotonic() - began < 2.0


def test_the_next_server_is_asked_after_a_failure() -> None:
    bad = FakeServer("127.0.0.1", lambda question: [reply(question, dns.rcode.SERVFAIL)])
    FakeServer("127.0.0.2", only("web.default.svc.cluster.local.", "10.96.1.1"))
    conf = ResolvConf(("127.0.0.1", "127.0.0.2"), SEARCH, ("ndots:5", "timeout:1"))
    assert resolve("web", HERE, conf).addresses == ("10.96.1.1",)
    assert bad.asked


def test_a_server_failure_goes_on_with_the_search_list() -> None:
    def answer(question: dns.message.Message) -> list[bytes]:
        if question.question[0].name.to_text() == "web.cluster.local.":
            return [reply(question, dns.rcode.NOERROR, "10.96.1.1")]
        return [reply(question, dns.rcode.SERVFAIL)]

    FakeServer("127.0.0.1", answer)
    assert resolve("web", HERE, POD).addresses == ("10.96.1.1",)
    assert resolve("other", HERE, POD).failure == "server failure"


def test_forged_and_broken_answers_are_passed_over() -> None:
    def answer(question: dns.message.Message) -> list[bytes]:
        good = reply(question, dns.rcode.NOERROR, "10.96.1.1")
        other = dns.message.make_query("evil.example.", "A", id=question.id)
        forged = bytes(2) + reply(question, dns.rcode.NOERROR, "192.0.2.66")[2:]
        return [
            b"",
            b"\x00",
            forged,
            good[:20],
            question.to_wire(),
            reply(other, dns.rcode.NOERROR, "192.0.2.66"),
            good,
        ]

    FakeServer("127.0.0.1", answer)
    assert resolve("web", HERE, POD, families=(4,)).addresses == ("10.96.1.1",)


def test_a_cut_answer_is_asked_for_again_over_tcp() -> None:
    def cut(question: dns.message.Message) -> list[bytes]:
        message = dns.message.make_response(question)
        message.flags |= dns.flags.TC
        return [message.to_wire()]

    FakeServer("127.0.0.1", cut)
    listener = socket.create_server(("127.0.0.1", 53))

    def serve() -> None:
        while True:
            client, _ = listener.accept()
            with client:
                size = int.from_bytes(client.recv(2))
                wire = reply(dns.message.from_wire(client.recv(size)), dns.rcode.NOERROR, "10.96.1.1", "10.96.1.2")
                client.sendall(len(wire).to_bytes(2) + wire)

    threading.Thread(target=serve, daemon=True).start()
    assert sorted(resolve("web", HERE, POD, families=(4,)).addresses) == ["10.96.1.1", "10.96.1.2"]


def test_hosts_and_addresses_need_no_server() -> None:
    hosts = "127.0.0.1\tlocalhost\n10.244.1.2\tdb-0.db.default.svc.cluster.local\tdb-0 # me\n"
    assert resolve("DB-0", HERE, POD, hosts=hosts).addresses == ("10.244.1.2",)
    assert resolve("10.1.2.3", HERE, POD).addresses == ("10.1.2.3",)
    assert resolve("db-0", HERE, POD, hosts=hosts).questions == 0


@pytest.mark.parametrize("name", ["", ".", "a..b", "x" * 64, "é" * 300, "\x00", "a b"])
def test_strange_names_have_an_end(name: str) -> None:
    FakeServer("127.0.0.1", lambda question: [reply(question, dns.rcode.NXDOMAIN)])
    assert resolve(name, HERE, POD).addresses == ()
