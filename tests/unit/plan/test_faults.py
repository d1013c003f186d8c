"""Faults as changes of a plan: what they change, what they leave alone, and that nothing is left of them."""

from __future__ import annotations

from functools import cache

import msgspec
import pytest

from emulator.cluster.assemble import assemble
from emulator.cluster.topology import load_topology
from emulator.cni.styles import load_style
from emulator.errors import UserError
from emulator.plan.build import build
from emulator.plan.diff import diff
from emulator.plan.faults import (
    FilterFault,
    FlushFault,
    HairpinFault,
    MacFault,
    MtuFault,
    PlanFault,
    ProxyStopFault,
    RouteFault,
    SysctlFault,
    check,
    in_force,
    is_dormant,
    overlay,
)
from emulator.plan.model import FAULT, UNDERLAY, Bridge, BridgePort, IptablesRules, NftTable, Plan, Sysctl, Veth

POD = "pod/default/n1-p1"
FAULTS: dict[str, PlanFault] = {
    "mtu": MtuFault(ns="node/n1", place="n1", device="flannel.1", mtu=1400),
    "port": MtuFault(ns=UNDERLAY, place="n2", device="s1-n2", mtu=1400),
    "pod": MtuFault(ns=POD, place="n1-p1", device="eth0", mtu=1300),
    "mac": MacFault(ns="node/n1", place="n1", device="flannel.1", mac="02:00:00:00:00:01"),
    "hairpin": HairpinFault(ns=POD, place="n1-p1", device="eth0"),
    "planned sysctl": SysctlFault(ns="node/n1", place="n1", name="net/ipv4/ip_forward", value="0"),
    "other sysctl": SysctlFault(ns="node/n1", place="n1", name="net/ipv4/tcp_syncookies", value="0"),
    "filter": FilterFault(ns="node/n1", place="n1", hook="input", protocol=17, port=53, match="protocol udp, port 53"),
    "route": RouteFault(ns="node/n1", place="n1", destination="10.244.2.0/24"),
    "flush": FlushFault(ns="node/n1", place="n1"),
}


@cache
def planned(style: str = "flannel", topology: str = "three-nodes") -> Plan:
    shape, loaded = load_topology(topology), load_style(style)
    return build(assemble(shape, [], loaded.ipam(shape)), loaded)


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_a_difference_of_its_place_alone_and_mending_is_its_inverse(name: str) -> None:
    plan, fault = planned(), FAULTS[name]
    check(plan, fault)
    broken = overlay(plan, [fault])
    there, back = diff(plan, broken), diff(broken, plan)
    assert there
    assert len(there) == len(back)
    ends = {fault.ns} | ({"node/n1"} if name in ("pod", "hairpin") else {"node/n2"} if name == "port" else set())
    assert {step.subject.ns for step in there} <= ends
    assert {step.subject.key for step in back} == {step.subject.key for step in there}


@pytest.mark.parametrize("name", FAULTS)
def test_fragments_that_a_fault_does_not_concern_stay_the_very_same(name: str) -> None:
    plan = planned()
    broken = overlay(plan, [FAULTS[name]])
    changed = {key for key, fragment in plan.fragments.items() if broken.fragments[key] is not fragment}
    assert 1 <= len(changed) <= 2


def test_no_fault_is_the_plan_itself() -> None:
    assert overlay(planned(), []) is planned()


@pytest.mark.parametrize("name", FAULTS)
def test_fault_whose_place_is_gone_lies_dormant_and_says_so(name: str) -> None:
    fault = FAULTS[name]
    elsewhere = planned(topology="single-node", style="flannel:host-gw")
    if name in ("mtu", "port", "mac", "route"):
        assert overlay(elsewhere, [fault]) is elsewhere
        assert is_dormant(elsewhere, fault)
        assert in_force([fault], elsewhere)[0].endswith("(there is nothing of it just now)")
    assert not is_dormant(planned(), fault)
    assert in_force([fault], planned()) == (fault.says(),)


@pytest.mark.parametrize(
    ("style", "ns", "reason"),
    [
        ("calico", POD, "n1-p1:eth0 is on no bridge as it is"),
        ("flannel", "pod/default/nobody", "is on no bridge"),
    ],
)
def test_hairpin_mode_can_be_lost_only_where_it_is(style: str, ns: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        check(planned(style), HairpinFault(ns=ns, place="n1-p1", device="eth0"))


def test_hairpin_mode_cannot_be_lost_of_a_port_that_has_none() -> None:
    plan = planned()
    ports = {
        name: tuple(
            msgspec.structs.replace(item, hairpin=False) if isinstance(item, BridgePort) else item for item in items
        )
        for name, items in plan.fragments.items()
    }
    with pytest.raises(UserError, match="n1-p1:eth0 has no hairpin mode as it is"):
        check(msgspec.structs.replace(plan, fragments=ports), FAULTS["hairpin"])


def test_switch_has_the_smallest_mtu_of_its_ports_as_the_kernel_gives_it() -> None:
    broken = overlay(planned(), [FAULTS["port"]])
    assert [item.mtu for item in broken if isinstance(item, Bridge) and item.name == "s1"] == [1400]
    near = [(item.mtu, item.peer_mtu) for item in broken if isinstance(item, Veth) and item.peer == "s1-n2"]
    assert near == [(1500, 1400)]


def test_larger_mtu_of_one_pod_leaves_its_bridge_at_the_smallest() -> None:
    large = MtuFault(ns=POD, place="n1-p1", device="eth0", mtu=1500)
    broken = overlay(planned(), [large])
    assert [item.mtu for item in broken.in_namespace("node/n1") if isinstance(item, Bridge)] == [1450]
    assert [(item.mtu, item.peer_mtu) for item in broken.in_namespace(POD) if isinstance(item, Veth)] == [(1500, 0)]


def test_flushing_one_table_leaves_the_others_and_filters_of_faults() -> None:
    broken = overlay(planned(), [FAULTS["filter"], FlushFault(ns="node/n1", place="n1", table="nat")])
    tables = {item.table for item in broken.in_namespace("node/n1") if isinstance(item, IptablesRules)}
    assert "nat" not in tables
    assert "filter" in tables
    everything = overlay(planned(), [FAULTS["filter"], FAULTS["flush"]])
    assert [item.component for item in everything.in_namespace("node/n1") if isinstance(item, NftTable)] == [FAULT]


def test_parameter_that_the_plan_sets_is_replaced_and_another_one_is_added() -> None:
    broken = overlay(planned(), [FAULTS["planned sysctl"], FAULTS["other sysctl"]])
    values = {item.name: item.value for item in broken.in_namespace("node/n1") if isinstance(item, Sysctl)}
    assert values["net/ipv4/ip_forward"] == "0"
    assert [step.verb for step in diff(broken, planned())] == ["remove", "replace"]


def test_filter_matches_each_family_and_direction() -> None:
    fault = FilterFault(
        ns=UNDERLAY,
        place="n2",
        hook="port",
        device="s1-n2",
        protocol=6,
        port=179,
        sources=("192.168.50.11/32", "fd00::11/128"),
        match="x",
    )
    (table,) = [item for item in overlay(planned(), [fault]) if isinstance(item, NftTable) and item.component == FAULT]
    assert table.family == "bridge"
    assert [line.strip() for line in table.body.splitlines() if "counter drop" in line] == [
        'iifname "s1-n2" ip saddr { 192.168.50.11/32 } meta l4proto 6 th dport 179 counter drop',
        'iifname "s1-n2" ip6 saddr { fd00::11/128 } meta l4proto 6 th dport 179 counter drop',
        'oifname "s1-n2" ip saddr { 192.168.50.11/32 } meta l4proto 6 th dport 179 counter drop',
        'oifname "s1-n2" ip6 saddr { fd00::11/128 } meta l4proto 6 th dport 179 counter drop',
    ]


def test_mtu_that_would_cost_a_device_its_ipv6_addresses_is_refused() -> None:
    plan = planned(topology="dual-stack")
    with pytest.raises(UserError, match="IPv6 addresses, which the kernel drops"):
        check(plan, MtuFault(ns="node/n1", place="n1", device="eth0", mtu=1279))
    check(plan, MtuFault(ns="node/n1", place="n1", device="eth0", mtu=1280))


def test_device_and_route_that_are_not_there_are_named_with_those_that_are() -> None:
    with pytest.raises(UserError) as caught:
        check(planned(), MtuFault(ns="node/n1", place="n1", device="eth9", mtu=1400))
    assert "flannel.1" in caught.value.hint
    with pytest.raises(UserError) as caught:
        check(planned(), RouteFault(ns="node/n1", place="n1", destination="10.99.0.0/16"))
    assert "10.244.2.0/24" in caught.value.hint


def test_a_proxy_that_has_stopped_leaves_its_rules_as_they_were() -> None:
    def rules(value: str) -> tuple[Sysctl, ...]:
        return (Sysctl(ns="node/n1", name="net/ipv4/tcp_syncookies", value=value),)

    plan = planned()
    before = msgspec.structs.replace(plan, fragments={**plan.fragments, "proxy/n1": rules("0"), "proxy/n2": rules("0")})
    now = msgspec.structs.replace(plan, fragments={**plan.fragments, "proxy/n1": rules("1"), "proxy/n2": rules("1")})
    fault = ProxyStopFault(ns="node/n1", place="n1", left=before.fragments["proxy/n1"])
    check(before, fault)
    held = overlay(now, [fault])
    assert held.fragments["proxy/n1"] is before.fragments["proxy/n1"]
    assert held.fragments["proxy/n2"] is now.fragments["proxy/n2"]
    assert in_force([fault], now) == ("the service proxy of n1 does not run",)
