from __future__ import annotations

import pytest

from emulator.traffic.freshports import BLOCK, FIRST_PORT, HELD, ICMP_IDS, PORTS, FreshPorts, NoFreshPort


def test_port_returns_only_after_all_others() -> None:
    ports = FreshPorts()
    taken = [ports.take("/run/netns/a", "tcp") for _ in range(PORTS + 1)]
    assert len(set(taken[:PORTS])) == PORTS
    assert (min(taken), max(taken)) == (FIRST_PORT, 60999)
    assert taken[PORTS] == taken[0]


def test_namespaces_and_protocols_count_for_themselves() -> None:
    ports = FreshPorts()
    first = ports.take("/run/netns/a", "tcp")
    ports.take("/run/netns/a", "udp")
    ports.take("/run/netns/b", "tcp")
    assert ports.take("/run/netns/a", "tcp") == FIRST_PORT + (first - FIRST_PORT + 1) % PORTS


def test_pods_begin_at_different_ports_and_the_same_ones_in_every_run() -> None:
    firsts = [FreshPorts().take(f"/run/netns/default_web-{number}", "tcp") for number in range(9)]
    assert len(set(firsts)) == 9
    assert firsts == [FreshPorts().take(f"/run/netns/default_web-{number}", "tcp") for number in range(9)]


def test_icmp_ids_are_never_zero() -> None:
    ports = FreshPorts()
    ids = {ports.take("/run/netns/a", "icmp") for _ in range(ICMP_IDS)}
    assert (min(ids), max(ids), len(ids)) == (1, 65535, 65535)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("protocol", ["tcp", "udp", "sctp"])
def test_fresh_port_is_refused_as_long_as_its_last_flow_may_be_tracked(protocol: str) -> None:
    clock = Clock()
    ports = FreshPorts(clock)
    first = [ports.take("/run/netns/a", protocol, fresh=True) for _ in range(PORTS)]
    assert len(set(first)) == PORTS
    clock.now += HELD - 1
    with pytest.raises(NoFreshPort, match=f"every {protocol} port of this sender"):
        ports.take("/run/netns/a", protocol, fresh=True)
    clock.now += 1
    assert ports.take("/run/netns/a", protocol, fresh=True) == first[0]


def test_ports_that_were_taken_for_anything_are_not_fresh() -> None:
    clock = Clock()
    ports = FreshPorts(clock)
    for _ in range(PORTS):
        ports.take("/run/netns/a", "udp")
    with pytest.raises(NoFreshPort):
        ports.take("/run/netns/a", "udp", fresh=True)
    assert ports.take("/run/netns/a", "udp")  # who only wants an answer gets one
    assert ports.take("/run/netns/b", "udp", fresh=True)


def test_what_is_remembered_of_used_ports_stays_small() -> None:
    ports = FreshPorts(Clock())
    for _ in range(5 * PORTS):
        ports.take("/run/netns/a", "tcp")
    assert len(ports._used["/run/netns/a", "tcp"]) < 400


def test_who_takes_over_an_address_gets_none_of_the_ports_that_were_used_with_it() -> None:
    clock = Clock()
    ports = FreshPorts(clock)
    first = {ports.take("/run/netns/a", "udp", sender="10.0.0.2", fresh=True) for _ in range(PORTS // 2)}
    second: list[int] = []
    with pytest.raises(NoFreshPort, match="every udp port of"):
        second += iter(lambda: ports.take("/run/netns/b", "udp", sender="10.0.0.2", fresh=True), 0)
    assert len(first) + len(second) == len(first.union(second)) > PORTS - 3 * BLOCK  # some blocks are used in part
    with pytest.raises(NoFreshPort, match=r"every udp port of 10\.0\.0\.2 was used"):
        ports.take("/run/netns/c", "udp", sender="10.0.0.2", fresh=True)
    assert ports.take("/run/netns/c", "udp", sender="10.0.0.3", fresh=True)
    assert ports.take("/run/netns/c", "tcp", sender="10.0.0.2", fresh=True)
    clock.now += HELD
    assert ports.take("/run/netns/c", "udp", sender="10.0.0.2", fresh=True)


def test_who_need_not_be_fresh_gets_a_port_all_the_same() -> None:
    ports = FreshPorts(Clock())
    for _ in range(PORTS):
        ports.take("/run/netns/a", "udp", sender="10.0.0.2")
    assert ports.take("/run/netns/b", "udp", sender="10.0.0.2")


def test_both_families_of_a_namespace_count_together() -> None:
    """A socket of IPv6 that is bound to all addresses has the port of IPv4 too."""
    ports = FreshPorts()
    senders = ("10.0.0.2", "fd00::2") * 300
    assert len({ports.take("/run/netns/a", "tcp", sender=sender) for sender in senders}) == 600
