"""Rules that policy enforcers write, judged by what a capture shows of a packet that they stopped."""

from __future__ import annotations

from typing import Any

import pytest

from emulator.capture.denial import Openings, denial, silenced
from emulator.capture.model import Hop, Packet
from emulator.capture.planned import Index
from emulator.plan.model import Address, BridgePort, Chain, IpSet, IptablesRules, Jump, Plan, Rule, Veth

NODE = "node/n1"
OURS: dict[str, Any] = {"ns": NODE, "component": "enforcer"}


def plan(*rules: tuple[str, ...], hook: str = "FORWARD", sets: tuple[IpSet, ...] = (), ports: bool = False) -> Index:
    """A node with two pods at two devices, or at two ports of a bridge, and one chain at a hook."""
    chain = Chain("POLICY", tuple(Rule(rule, f"rule {number}") for number, rule in enumerate(rules, 1)))
    table = IptablesRules(
        **OURS,
        owner="enforcer",
        table="filter",
        family=4,
        chains=(chain,),
        jumps=(Jump(hook, Rule(("-j", "POLICY")), "insert"),),
    )
    things: list[Any] = [
        Veth(**OURS, name="va", peer="eth0", peer_ns="pod/default/a", mtu=1500),
        Veth(**OURS, name="vb", peer="eth0", peer_ns="pod/default/b", mtu=1500),
        Address(**OURS, device="br" if ports else "va", address="10.0.0.1/24"),
        *([BridgePort(**OURS, bridge="br", device=device) for device in ("va", "vb")] if ports else []),
    ]
    return Index(Plan(style="test", topology="test", fragments={"node/n1": (*things, table, *sets)}))


def came(protocol: str = "tcp", port: int = 80, target: str = "10.0.0.3", **more: Any) -> list[Hop]:
    packet = Packet(
        "02:00:00:00:00:01", "02:00:00:00:00:02", 60, protocol, version=4, source="10.0.0.2", target=target,
        source_port=40000 if port else 0, target_port=port, **more,
    )  # fmt: skip
    return [Hop(0, 0, NODE, "va", "in", packet, (), ())]


def test_drop_is_told_with_chain_place_and_purpose() -> None:
    found = denial(came(), plan(("-p", "udp", "-j", "ACCEPT"), ("-j", "DROP")), new=True)
    assert found is not None
    assert (found.ns, found.hook, found.action, found.table, found.chain, found.rule, found.why) == (
        NODE, "FORWARD", "drop", "filter", "POLICY", 2, "rule 2",
    )  # fmt: skip


def test_reject_is_told_apart_from_drop() -> None:
    found = denial(came(), plan(("-j", "REJECT")), new=True)
    assert found is not None
    assert found.action == "reject"


@pytest.mark.parametrize(
    ("rule", "stops"),
    [
        (("-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED", "-j", "ACCEPT"), True),
        (("-m", "conntrack", "--ctstate", "NEW", "-j", "ACCEPT"), False),
        (("-p", "tcp", "-m", "multiport", "--dports", "79,80:90", "-j", "ACCEPT"), False),
        (("-p", "tcp", "-m", "multiport", "--dports", "79,81:90", "-j", "ACCEPT"), True),
        (("-m", "set", "--match-set", "named", "dst,dst", "-j", "ACCEPT"), False),
        (("-m", "set", "--match-set", "others", "dst,dst", "-j", "ACCEPT"), True),
        (("-m", "set", "--match-set", "nets", "src", "-j", "ACCEPT"), True),
        (("-m", "set", "--match-set", "lists", "src", "-j", "ACCEPT"), False),
        (("-m", "set", "!", "--match-set", "lists", "src", "-j", "ACCEPT"), True),
        (("-m", "physdev", "--physdev-is-bridged", "-j", "ACCEPT"), True),
        (("-p", "icmp", "--icmp-type", "echo-request", "-j", "ACCEPT"), True),
    ],
    ids=lambda value: " ".join(value[2:-2]) if isinstance(value, tuple) else "",
)
def test_conditions_of_enforcers_are_judged(rule: tuple[str, ...], stops: bool) -> None:
    sets = (
        IpSet(**OURS, name="named", type="hash:ip,port", family=4, members=("10.0.0.3,tcp:80",)),
        IpSet(**OURS, name="others", type="hash:ip,port", family=4, members=("10.0.0.3,udp:80",)),
        IpSet(**OURS, name="nets", type="hash:net", family=4, members=("10.0.0.0/24", "10.0.0.2/32 nomatch")),
        IpSet(**OURS, name="ips", type="hash:ip", family=4, members=("10.0.0.2",)),
        IpSet(**OURS, name="lists", type="list:set", family=4, members=("ips", "others")),
    )
    found = denial(came(), plan(rule, ("-j", "DROP"), sets=sets), new=True)
    assert (found is not None) == stops


def test_icmp_types_are_judged_by_name() -> None:
    rules = (("-p", "icmp", "--icmp-type", "echo-request", "-j", "DROP"),)
    assert denial(came("icmp", 0, icmp_type=8, icmp_id=1), plan(*rules), new=True) is not None
    assert denial(came("icmp", 0, icmp_type=0, icmp_id=1), plan(*rules), new=True) is None


def test_packet_of_a_connection_that_may_be_known_is_left_open() -> None:
    rules = (("-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED", "-j", "ACCEPT"), ("-j", "DROP"))
    assert denial(came(), plan(*rules), new=False) is None


def test_between_ports_of_a_bridge_the_bridge_is_both_devices() -> None:
    rules = (("-i", "br", "-o", "br", "-m", "physdev", "--physdev-is-bridged", "-j", "DROP"),)
    assert denial(came(), plan(*rules, ports=True), new=True) is not None
    assert denial(came(), plan(*rules), new=True) is None


def test_packet_to_the_machine_itself_meets_input() -> None:
    found = denial(came(target="10.0.0.1"), plan(("-j", "DROP"), hook="INPUT"), new=True)
    assert found is not None
    assert found.hook == "INPUT"
    assert denial(came(target="10.0.0.1"), plan(("-j", "DROP")), new=True) is None


def test_packet_that_never_left_met_output() -> None:
    packet = came(target="10.0.0.2")[0].packet
    found = silenced(packet, NODE, plan(("-d", "10.0.0.2", "-j", "DROP"), hook="OUTPUT"))
    assert found is not None
    assert (found.hook, found.rule) == ("OUTPUT", 1)


def test_service_address_is_followed_to_every_endpoint() -> None:
    rules = (("-d", "10.0.0.3", "-j", "DROP"), ("-d", "10.0.0.4", "-j", "DROP"))
    hops = came(target="10.96.0.1")
    assert denial(hops, plan(*rules), new=True, aims=[("10.0.0.3", 8080)]) is not None
    assert denial(hops, plan(*rules), new=True, aims=[("10.0.0.3", 8080), ("10.0.0.4", 8080)]) is None


def test_openings_are_told_from_what_was_answered() -> None:
    openings = Openings()
    asked = came("udp", 53)
    assert openings.opens(asked[0].packet)
    openings.note(asked)
    assert openings.opens(asked[0].packet)  # asked again: nothing has come back
    back = asked[0].packet
    answer = Packet(
        back.target_mac, back.source_mac, 60, "udp", version=4, source=back.target, target=back.source,
        source_port=back.target_port, target_port=back.source_port,
    )  # fmt: skip
    assert not openings.opens(answer)
    openings.note([Hop(1, 1, NODE, "vb", "in", answer, (), ())])
    assert not openings.opens(back)
