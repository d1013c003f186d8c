from __future__ import annotations

from emulator.traffic.freshports import FIRST_PORT, ICMP_IDS, PORTS, FreshPorts


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
