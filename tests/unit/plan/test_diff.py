"""emulator.plan.diff: the steps from one plan to the next."""

from __future__ import annotations

from typing import Any

import msgspec

from emulator.plan.diff import Operation, diff, equivalent
from emulator.plan.model import (
    Address,
    AnyObject,
    Bridge,
    BridgePort,
    Daemon,
    FdbEntry,
    File,
    Namespace,
    Neighbour,
    Plan,
    Route,
    Sysctl,
    Veth,
    Vxlan,
)

NODE = Namespace(ns="node/n1", role="node", hostname="n1")
NODE2 = Namespace(ns="node/n2", role="node", hostname="n2")
POD = Namespace(ns="pod/default/a", role="pod", hostname="a")
PEER = Bridge(ns="node/n1", name="cni0", mtu=1500)
VXLAN = Vxlan(ns="node/n1", name="flannel.1", vni=1, port=8472, local="10.0.0.1", underlay="eth0", mtu=1450)
POD_VETH = Veth(ns=POD.ns, name="eth0", mtu=1500, peer_ns="node/n1", peer="veth1")
POD_ADDRESS = Address(ns=POD.ns, device="eth0", address="10.244.1.2/24")
HOST_ROUTE = Route(ns="node/n1", destination="10.244.1.2/32", device="veth1", scope="link")


def plan(**fragments: tuple[AnyObject, ...]) -> Plan:
    return Plan(style="test:", topology="test", fragments=fragments)


def verbs(operations: list[Operation]) -> list[tuple[str, str]]:
    return [(step.verb, type(step.subject).__name__) for step in operations]


def test_equal_plans_need_nothing() -> None:
    one = plan(node=(NODE, PEER))
    assert diff(one, plan(node=(NODE, PEER))) == []


def test_everything_is_added_to_nothing_in_an_order_that_can_be_executed() -> None:
    shuffled: tuple[AnyObject, ...] = (
        Daemon(ns="node/n1", name="bird", argv=("bird",), files=("/etc/b",)),
        File(ns="node/n1", path="/etc/b", content=""),
        Route(ns="node/n1", destination="0.0.0.0/0", via="10.0.0.9"),
        Route(ns="node/n1", destination="10.9.0.0/16", device="eth0", scope="link"),
        Neighbour(ns="node/n1", device="flannel.1", address="10.244.2.0", mac="02:00:00:00:00:01"),
        FdbEntry(ns="node/n1", device="flannel.1", mac="02:00:00:00:00:01", remote="10.0.0.2"),
        Address(ns="node/n1", device="flannel.1", address="10.244.1.0/32"),
        Sysctl(ns="node/n1", name="net/ipv4/conf/flannel.1/rp_filter", value="0"),
        BridgePort(ns="node/n1", device="veth1", bridge="cni0"),
        VXLAN,
        PEER,
        POD_VETH,
        Sysctl(ns="node/n1", name="net/ipv4/ip_forward", value="1"),
        POD,
        NODE,
    )
    names = [type(step.subject).__name__ for step in diff(None, plan(all=shuffled))]
    assert names == [
        "Namespace",
        "Namespace",
        "Sysctl",
        "Bridge",
        "Veth",
        "Vxlan",
        "BridgePort",
        "Sysctl",
        "Address",
        "FdbEntry",
        "Neighbour",
        "Route",
        "Route",
        "File",
        "Daemon",
    ]
    routes = [step.new for step in diff(None, plan(all=shuffled)) if isinstance(step.new, Route)]
    assert routes[0].scope == "link"  # the gateway of the second must be reachable by then


def test_a_pod_that_goes_takes_its_veth_addresses_and_host_routes_with_it() -> None:
    before = plan(node=(NODE, PEER), pod=(POD, POD_VETH, POD_ADDRESS, HOST_ROUTE))
    assert verbs(diff(before, plan(node=(NODE, PEER)))) == [("remove", "Namespace")]


def test_a_device_that_goes_takes_what_is_on_it() -> None:
    on_it = (
        VXLAN,
        Address(ns="node/n1", device="flannel.1", address="10.244.1.0/32"),
        FdbEntry(ns="node/n1", device="flannel.1", mac="02:00:00:00:00:01", remote="10.0.0.2"),
        Neighbour(ns="node/n1", device="flannel.1", address="10.244.2.0", mac="02:00:00:00:00:01"),
        Route(ns="node/n1", destination="10.244.2.0/24", via="10.244.2.0", device="flannel.1", onlink=True),
        Sysctl(ns="node/n1", name="net/ipv4/conf/flannel.1/rp_filter", value="0"),
    )
    assert verbs(diff(plan(node=(NODE, *on_it)), plan(node=(NODE,)))) == [("remove", "Vxlan")]


def test_removals_come_first_and_in_reverse_order_of_dependency() -> None:
    address = Address(ns="node/n1", device="cni0", address="10.244.1.1/24")
    route = Route(ns="node/n1", destination="10.9.0.0/16", via="10.244.1.9", device="cni0")
    new_route = Route(ns="node/n1", destination="10.8.0.0/16", device="cni0")
    steps = diff(plan(node=(NODE, PEER, address, route)), plan(node=(NODE, PEER, new_route)))
    assert verbs(steps) == [("remove", "Route"), ("remove", "Address"), ("add", "Route")]


def test_a_changed_gateway_is_replaced_in_place() -> None:
    old = Route(ns="node/n1", destination="10.244.2.0/24", via="10.0.0.2", device="eth0")
    new = msgspec.structs.replace(old, via="10.0.0.3")
    assert diff(plan(node=(NODE, old)), plan(node=(NODE, new))) == [Operation(verb="replace", new=new, old=old)]


def test_a_change_of_words_is_no_operation() -> None:
    reworded = msgspec.structs.replace(PEER, component="someone", why="another reason")
    assert equivalent(PEER, reworded)
    assert diff(plan(node=(NODE, PEER)), plan(node=(NODE, reworded))) == []


def test_learned_routes_are_never_operations() -> None:
    learned = Route(ns="node/n1", destination="10.244.2.0/24", via="10.0.0.2", learned=True, protocol="bird")
    assert verbs(diff(None, plan(node=(NODE, learned)))) == [("add", "Namespace")]
    assert diff(plan(node=(NODE, learned)), plan(node=(NODE,))) == []


def test_a_route_that_bgp_takes_over_is_removed_and_one_that_it_gives_up_is_added() -> None:
    learned = Route(ns="node/n1", destination="10.244.2.0/24", via="10.0.0.2", learned=True)
    static = msgspec.structs.replace(learned, learned=False)
    assert verbs(diff(plan(node=(NODE, static)), plan(node=(NODE, learned)))) == [("remove", "Route")]
    assert verbs(diff(plan(node=(NODE, learned)), plan(node=(NODE, static)))) == [("add", "Route")]


def test_a_tunnel_with_another_id_is_made_anew_with_everything_on_it() -> None:
    route = Route(ns="node/n1", destination="10.244.2.0/24", via="10.244.2.0", device="flannel.1", onlink=True)
    other = msgspec.structs.replace(VXLAN, vni=2)
    steps = diff(plan(node=(NODE, VXLAN, route)), plan(node=(NODE, other, route)))
    assert verbs(steps) == [("remove", "Vxlan"), ("add", "Vxlan"), ("add", "Route")]


def test_a_pod_with_another_address_is_another_pod() -> None:
    other_address = msgspec.structs.replace(POD_ADDRESS, address="10.244.1.9/24")
    before = plan(node=(NODE,), pod=(POD, POD_VETH, POD_ADDRESS, HOST_ROUTE))
    after = plan(
        node=(NODE,),
        pod=(POD, POD_VETH, other_address, msgspec.structs.replace(HOST_ROUTE, destination="10.244.1.9/32")),
    )
    assert verbs(diff(before, after)) == [
        ("remove", "Namespace"),
        ("add", "Namespace"),
        ("add", "Veth"),
        ("add", "Address"),
        ("add", "Route"),
    ]


def test_a_pod_that_moves_to_another_node_keeps_nothing() -> None:
    moved = msgspec.structs.replace(POD_VETH, peer_ns="node/n2")
    port = BridgePort(ns="node/n1", device="veth1", bridge="cni0")
    there = msgspec.structs.replace(port, ns="node/n2")
    steps = diff(
        plan(node=(NODE, NODE2, PEER), pod=(POD, POD_VETH, port)),
        plan(node=(NODE, NODE2, PEER), pod=(POD, moved, there)),
    )
    assert verbs(steps) == [("remove", "Namespace"), ("add", "Namespace"), ("add", "Veth"), ("add", "BridgePort")]


def test_a_daemon_whose_file_changes_is_reloaded_after_the_file() -> None:
    daemon = Daemon(ns="node/n1", name="bird", argv=("bird",), files=("/etc/b",), reload=("birdc", "configure"))
    old, new = (File(ns="node/n1", path="/etc/b", content=text) for text in ("one", "two"))
    steps = diff(plan(node=(NODE, old, daemon)), plan(node=(NODE, new, daemon)))
    assert steps == [
        Operation(verb="replace", new=new, old=old),
        Operation(verb="replace", new=daemon, old=daemon),
    ]


def test_a_daemon_is_ended_although_its_namespace_goes() -> None:
    daemon = Daemon(ns="node/n1", name="bird", argv=("bird",))
    assert verbs(diff(plan(node=(NODE, daemon)), plan())) == [("remove", "Daemon"), ("remove", "Namespace")]


def test_an_object_may_move_between_fragments() -> None:
    assert diff(plan(one=(NODE, PEER), two=()), plan(one=(NODE,), two=(PEER,))) == []


def test_a_pod_more_touches_nothing_but_itself(planned: Any, manifest: Any) -> None:
    before = planned("flannel")
    after = before.then(objects=(manifest("extra", node="n2"),))
    assert {step.subject.ns for step in diff(before.plan, after.plan)} == {"pod/default/extra", "node/n2"}
    assert {step.verb for step in diff(before.plan, after.plan)} == {"add"}
    assert [step.subject.ns for step in diff(after.plan, before.plan)] == ["pod/default/extra"]


def test_there_and_back_again_is_where_it_started(planned: Any) -> None:
    """Adding what one diff removes gives the other plan: keys, and the objects under them."""
    flannel, calico = planned("flannel").plan, planned("calico").plan
    state = {item.key: item for item in flannel}
    for step in diff(flannel, calico):
        if step.verb == "remove" and step.old is not None:
            state.pop(step.old.key)
        elif step.new is not None:
            state[step.new.key] = step.new
    wanted = {item.key for item in calico if not (isinstance(item, Route) and item.learned)}
    alive = {item.ns for item in calico if isinstance(item, Namespace)}
    assert wanted <= set(state)
    assert all(item.ns in alive for item in state.values() if item.key in wanted)
