"""Which interface flanneld and calico-node take: emulator.cni.flannel_interface, flannel_options, calico_addresses."""

from __future__ import annotations

from typing import Any

import pytest

from emulator.cni.go_regexp import compile_pattern
from emulator.errors import ManifestError, UserError
from emulator.plan.model import FdbEntry, Route, Veth, Vxlan
from tests.unit.conftest import Planned, Planning

DUAL = """
name: two-ways
podCIDRs: [10.244.0.0/16, "fd00:10:244::/56"]
serviceCIDRs: [10.96.0.0/12, "fd00:10:96::/112"]
pods: 1
switches:
  - {name: s1, cidrs: [192.168.50.0/24, "fd00:192:168:50::/64"]}
  - {name: s2, cidrs: [192.168.60.0/24, "fd00:192:168:60::/64"], mtu: 1400}
nodes: [{prefix: n, count: 2, switch: s1}]
routers: [{name: r, switch: s1}]
links:
  - {from: n1, to: s2}
  - {from: n2, to: s2}
"""
ONE_ADDRESS = """
name: one-address
pods: 1
switches:
  - {name: a, cidrs: [10.0.2.0/24], nat: true}
  - {name: b, cidrs: [10.0.2.0/24], nat: true}
  - {name: out, cidrs: [203.0.113.0/24]}
nodes:
  - {name: n1, switch: a, addresses: [10.0.2.15]}
  - {name: n2, switch: b, addresses: [10.0.2.15]}
routers: [{name: ra, switch: a}, {name: rb, switch: b}]
links: [{from: ra, to: out}, {from: rb, to: out}]
"""


def daemon_set(name: str, container: dict[str, Any], namespace: str = "kube-system") -> dict[str, Any]:
    template = {"metadata": {"labels": {"app": name}}, "spec": {"hostNetwork": True, "containers": [container]}}
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"selector": {"matchLabels": {"app": name}}, "template": template},
    }


def flanneld(*args: str, name: str = "kube-flannel-ds", **container: Any) -> dict[str, Any]:
    given = {"command": ["/opt/bin/flanneld"], "args": ["--ip-masq", "--kube-subnet-mgr", *args], **container}
    return daemon_set(name, {"name": "kube-flannel", "image": "flannel", **given})


def calico_node(**env: str) -> dict[str, Any]:
    variables = [{"name": key, "value": value} for key, value in env.items()]
    return daemon_set("calico-node", {"name": "calico-node", "image": "calico/node", "env": variables})


def tunnel(planned: Planned, name: str = "flannel.1", node: str = "n1") -> tuple[str, str, int]:
    (found,) = (i for i in planned.plan if isinstance(i, Vxlan) and (i.ns, i.name) == (f"node/{node}", name))
    return found.local, found.underlay, found.mtu


def remotes(planned: Planned, node: str = "n1") -> list[str]:
    return [item.remote for item in planned.plan if isinstance(item, FdbEntry) and item.ns == f"node/{node}"]


# -- Flannel ----------------------------------------------------------------------------------------------------


def test_flanneld_takes_the_interface_of_the_default_route(planned: Planning) -> None:
    plan = planned("flannel", "vagrant")
    assert tunnel(plan) == ("10.0.2.15", "eth0", 1450)
    assert remotes(plan) == ["10.0.2.15", "10.0.3.15"]
    assert [node.addresses for node in plan.cluster.nodes][:2] == [("192.168.56.11",), ("192.168.56.12",)]


@pytest.mark.parametrize(
    "args",
    [
        ["--iface=eth1"],
        ["-iface", "eth1"],
        ["--iface=eth7", "--iface=eth1"],
        ["--iface=eth7", "--iface-regex=eth1$"],
        ["--iface-regex=^192\\.168\\.56\\."],
        ["--iface-regex=eth[1-9]"],
        ["--iface-can-reach=192.168.56.99"],
        ["--iface-regex=nothing", "--iface-can-reach", "192.168.56.99"],
        ["--v=4", "--iface=eth1", "--healthz-port", "8471"],
    ],
)
def test_flanneld_takes_the_interface_that_it_is_told(planned: Planning, args: list[str]) -> None:
    plan = planned("flannel", "vagrant", objects=(flanneld(*args),))
    assert tunnel(plan) == ("192.168.56.11", "eth1", 1450)
    assert remotes(plan) == ["192.168.56.12", "192.168.56.13"]


def test_arguments_alone_and_variables_count_as_well(planned: Planning) -> None:
    alone = flanneld("--iface=eth1")
    del alone["spec"]["template"]["spec"]["containers"][0]["command"]
    assert tunnel(planned("flannel", "vagrant", objects=(alone,)))[1] == "eth1"
    by_variable = flanneld(env=[{"name": "FLANNELD_IFACE", "value": "eth1"}])
    assert tunnel(planned("flannel", "vagrant", objects=(by_variable,)))[1] == "eth1"
    both = flanneld("--iface=eth0", env=[{"name": "FLANNELD_IFACE", "value": "eth1"}])
    assert tunnel(planned("flannel", "vagrant", objects=(both,)))[1] == "eth0"


def test_the_first_interface_with_a_matching_address_wins_over_names(planned: Planning) -> None:
    assert tunnel(planned("flannel", "vagrant", objects=(flanneld("--iface-regex=1.*5"),)))[1] == "eth0"


def test_a_public_address_chooses_the_interface_unless_one_is_named(planned: Planning) -> None:
    for args, device in (((), "eth0"), (("--iface=eth1",), "eth1")):
        text = annotated("flannel.alpha.coreos.com/node-public-ip: 192.168.56.12")
        plan = planned("flannel", text, objects=(flanneld(*args),))
        assert tunnel(plan, node="n1")[1] == device
        assert tunnel(plan, node="n2") == ("192.168.56.12", "eth1", 1450)
        assert remotes(plan) == ["192.168.56.12"]


def test_overwriting_the_public_address_leaves_the_tunnel_where_it_is(planned: Planning) -> None:
    plan = planned("flannel", annotated("flannel.alpha.coreos.com/public-ip-overwrite: 192.168.56.12"))
    assert remotes(plan, "n1") == ["192.168.56.12"]
    assert tunnel(plan, node="n2") == ("10.0.2.15", "eth0", 1450)


def annotated(text: str) -> str:
    """Two machines of Vagrant's, the second with an annotation."""
    return f"""
name: annotated
pods: 1
switches:
  - {{name: a, cidrs: [10.0.2.0/24], nat: true}}
  - {{name: b, cidrs: [10.0.2.0/24], nat: true}}
  - {{name: s, cidrs: [192.168.56.0/24]}}
  - {{name: out, cidrs: [203.0.113.0/24]}}
nodes:
  - {{name: n1, switch: a, addresses: [10.0.2.15]}}
  - {{name: n2, switch: b, addresses: [10.0.2.15], annotations: {{{text}}}}}
routers: [{{name: ra, switch: a}}, {{name: rb, switch: b}}]
links:
  - {{from: n1, to: s, addresses: [192.168.56.11]}}
  - {{from: n2, to: s, addresses: [192.168.56.12]}}
  - {{from: ra, to: out}}
  - {{from: rb, to: out}}
"""


def test_the_mtu_is_that_of_the_interface_and_pods_follow_it(planned: Planning) -> None:
    before = planned("flannel", DUAL)
    assert {item.mtu for item in before.plan if isinstance(item, Veth) and item.ns.startswith("pod/")} == {1430}
    after = before.then(objects=(flanneld("--iface=eth1"),))
    assert tunnel(after) == ("192.168.60.11", "eth1", 1350)
    assert tunnel(after, "flannel-v6.1") == ("fd00:192:168:60::11", "eth1", 1330)
    assert {item.mtu for item in after.plan if isinstance(item, Veth) and item.ns.startswith("pod/")} == {1330}


def test_routes_by_a_node_leave_by_the_chosen_interface(planned: Planning) -> None:
    plan = planned("flannel:host-gw", DUAL, objects=(flanneld("--iface=eth1"),))
    routes = [i for i in plan.plan if isinstance(i, Route) and i.ns == "node/n1" and i.component == "flanneld"]
    assert {(route.via, route.device) for route in routes} == {
        ("192.168.60.12", "eth1"),
        ("fd00:192:168:60::12", "eth1"),
    }


def test_no_kernel_takes_a_route_by_its_own_address(planned: Planning) -> None:
    for style in ("flannel:host-gw", "flannel:directrouting"):
        plan = planned(style, ONE_ADDRESS)
        assert not [i for i in plan.plan if isinstance(i, Route) and i.destination == "10.244.2.0/24" and i.via]


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (["--iface=eth7"], "flanneld finds no interface on node n1: there is no eth7"),
        (["--iface=10.9.9.9"], "no interface has 10.9.9.9"),
        (["--iface-regex=wlan"], "wlan matches none"),
        (["--iface-regex=l"], "l matches lo"),
        (["--iface-regex=("], "is no regular expression"),
        (["--iface-regex=(a+)+"], "repeats a group that holds a repetition"),
        (["--iface-can-reach=eth1"], "must be an IP address"),
        (["--public-ip=fd00::1"], "must be an IPv4 address"),
        (["--public-ip=203.0.113.9"], "no interface has 203.0.113.9"),
        (["--ifcae=eth1"], 'no such option, did you mean "iface"?'),
        (["--iface"], "needs a value"),
        (["--ip-masq=false"], "--ip-masq: flanneld without it is not emulated"),
        (["--ip-masq=perhaps"], "must be true or false"),
        (["--iptables-forward-rules=false"], "--iptables-forward-rules is not emulated"),
    ],
)
def test_what_flanneld_would_not_start_with_is_refused(planned: Planning, args: list[str], reason: str) -> None:
    with pytest.raises(ManifestError) as caught:
        planned("flannel", "vagrant", objects=(flanneld(*args),))
    assert reason in str(caught.value)
    assert str(caught.value).startswith("DaemonSet kube-flannel-ds: spec.template.spec.containers[kube-flannel].args")


def test_a_shell_that_starts_flanneld_is_refused(planned: Planning) -> None:
    with pytest.raises(ManifestError, match="only flanneld itself is emulated"):
        planned("flannel", "vagrant", objects=(flanneld(command=["/bin/sh", "-c"]),))


def test_an_address_of_one_family_does_not_do_for_two(planned: Planning) -> None:
    with pytest.raises(ManifestError, match=r"192.168.60.11 is of one family only: name the interface"):
        planned("flannel", DUAL, objects=(flanneld("--iface=192.168.60.11"),))


@pytest.mark.parametrize("style", ["flannel:host-gw", "flannel:ipip"])
def test_routes_by_nodes_need_no_nat_in_between(planned: Planning, style: str) -> None:
    objects = (flanneld("--iface=eth0", "--public-ip=203.0.113.9"),)
    with pytest.raises(UserError, match="its public IP differs from its interface's"):
        planned(style, objects=objects)


def test_canal_reads_its_own_manifest(planned: Planning) -> None:
    assert tunnel(planned("canal", "vagrant"))[1] == "eth0"
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "canal-config", "namespace": "kube-system"},
        "data": {"canal_iface": "eth1"},
    }
    assert tunnel(planned("canal", "vagrant", objects=(config,)))[1] == "eth1"
    assert tunnel(planned("canal", "vagrant", objects=(flanneld("--iface=eth1", name="canal"),)))[1] == "eth1"
    assert tunnel(planned("canal", "vagrant", objects=(flanneld("--iface=eth1"),)))[1] == "eth0"


def test_pods_under_canal_follow_its_config_map(planned: Planning) -> None:
    text = DUAL.replace(', "fd00:10:244::/56"', "").replace(', "fd00:10:96::/112"', "")
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "canal-config", "namespace": "kube-system"}}
    for iface, mtu in (("eth0", 1450), ("eth1", 1350)):
        plan = planned("canal", text).then(objects=({**config, "data": {"canal_iface": iface}},))
        assert {item.mtu for item in plan.plan if isinstance(item, Veth) and item.ns.startswith("pod/")} == {mtu}


# -- Calico -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "local"),
    [
        ("", "192.168.56.11"),  # the last interface comes first
        ("first-found", "192.168.56.11"),
        ("interface=eth0", "10.0.2.15"),
        ("interface=ens.*, eth1", "192.168.56.11"),
        ("skip-interface=eth1", "10.0.2.15"),
        ("cidr=10.9.0.0/16,10.0.0.0/8", "10.0.2.15"),
        ("can-reach=203.0.113.10", "10.0.2.15"),
        ("can-reach=192.168.56.99", "192.168.56.11"),
        ("kubernetes-internal-ip", "192.168.56.11"),
    ],
)
def test_calico_node_detects_its_address(planned: Planning, method: str, local: str) -> None:
    objects = (calico_node(IP_AUTODETECTION_METHOD=method),) if method else ()
    if local == "192.168.56.11":
        assert tunnel(planned("calico:vxlan", "vagrant", objects=objects), "vxlan.calico")[0] == local
    else:
        with pytest.raises(UserError) as caught:
            planned("calico:vxlan", "vagrant", objects=objects)
        assert "does not start on n2: Calico node 'n1' is already using the IPv4 address 10.0.2.15" in str(caught.value)


@pytest.mark.parametrize(
    ("field", "device"),
    [
        ({"interface": "eth0"}, "eth0"),
        ({"skipInterface": "eth1"}, "eth0"),
        ({"cidrs": ["192.168.50.0/24"]}, "eth0"),
        ({"canReach": "192.168.50.1"}, "eth0"),
        ({"kubernetes": "NodeInternalIP"}, "eth0"),
        ({"firstFound": True}, "eth1"),
    ],
)
def test_the_operators_installation_says_the_same(planned: Planning, field: dict[str, Any], device: str) -> None:
    plan = planned("calico:vxlan", DUAL, objects=(installation(nodeAddressAutodetectionV4=field),))
    assert tunnel(plan, "vxlan.calico")[1] == device


def installation(**network: Any) -> dict[str, Any]:
    return {
        "apiVersion": "operator.tigera.io/v1",
        "kind": "Installation",
        "metadata": {"name": "default"},
        "spec": {"calicoNetwork": network},
    }


def test_the_mtu_is_the_smallest_of_the_nodes_interfaces(planned: Planning) -> None:
    objects = (calico_node(IP_AUTODETECTION_METHOD="interface=eth0", IP6_AUTODETECTION_METHOD="interface=eth0"),)
    assert tunnel(planned("calico:vxlan", DUAL, objects=objects), "vxlan.calico") == ("192.168.50.11", "eth0", 1350)


@pytest.mark.parametrize(
    ("objects", "reason"),
    [
        (calico_node(IP_AUTODETECTION_METHOD="eth1"), "must be one of first-found, kubernetes-internal-ip"),
        (calico_node(IP_AUTODETECTION_METHOD="can-reach=www.example.com"), "host names are not emulated"),
        (calico_node(IP_AUTODETECTION_METHOD="cidr=10.0.2.0"), "IP_AUTODETECTION_METHOD"),
        (calico_node(IP_AUTODETECTION_METHOD="interface=(x|y)*"), "repeats a group"),
        (calico_node(IP="10.0.2.15"), "only autodetect is emulated"),
        (calico_node(IP_AUTODETECTION_METHOD="interface=wlan0"), "interface=wlan0 finds no IPv4 address"),
        (installation(ipPools=[]), "spec.calicoNetwork.ipPools: Forbidden: not emulated"),
        (installation(nodeAddressAutodetectionV4={}), "exactly one way of detection"),
        (installation(nodeAddressAutodetectionV4={"interface": "a", "canReach": "10.0.0.1"}), "exactly one way"),
        (installation(nodeAddressAutodetectionV4={"kubernetes": "Hostname"}), 'Invalid value: "Hostname"'),
    ],
)
def test_what_calico_node_would_not_start_with_is_refused(
    planned: Planning, objects: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UserError) as caught:
        planned("calico", "vagrant", objects=(objects,))
    assert reason in str(caught.value)


@pytest.mark.parametrize("style", ["kindnet", "kube-router"])
def test_styles_that_route_by_internal_ips_need_different_ones(planned: Planning, style: str) -> None:
    with pytest.raises(UserError, match=r"n1 and n2 have the same one, 10.0.2.15"):
        planned(style, ONE_ADDRESS)


def test_aws_has_no_subnets_with_the_same_addresses(planned: Planning) -> None:
    with pytest.raises(UserError, match="topology vagrant has switches behind NAT"):
        planned("aws-vpc", "vagrant")


# -- patterns ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        *("eth.*|en.*", "(^bond0$|^eth0$)", r"^192\.168\.(56|57)\.\d{1,3}$", "[(*]x+", "(?:a|b)?c"),
        "|".join(["a.*"] * 9),
    ],
)
def test_usual_patterns_are_taken(text: str) -> None:
    assert compile_pattern(text).pattern == text


@pytest.mark.parametrize(
    "text",
    [
        *("(a+)+$", "(a|a)*$", "((a|b)c)*", "(.*)*", "(a{2,}){3}", r"(a)\1", "a++", "(?=a)", "(?P<x>a)", "a" * 300),
        *("[", "((", ".*" * 7),
    ],
)
def test_patterns_that_could_take_for_ever_or_that_go_has_not_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"repeat|do not know|not emulated|no regular|no more than"):
        compile_pattern(text)
