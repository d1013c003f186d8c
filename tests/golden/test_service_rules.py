"""kube-proxy's iptables rules as golden files: for each kind of Service the first load and a change, of one node.

Write them anew with ``UPDATE_GOLDEN=1`` and read the diff.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from emulator.cluster.services import Service
from emulator.plan.iptables import rule_text
from emulator.plan.model import ProxyRules, Sysctl
from emulator.plan.proxy_rules import full_text, hook_lines, partial_text
from emulator.proxy import iptables
from emulator.proxy.model import ProxySettings
from tests.golden.service_constructs import (
    CONSTRUCTS,
    HTTP,
    NODE_PORT,
    SETTINGS,
    Construct,
    backends,
    clusters,
    on,
    service,
)

FOLDER = Path(__file__).parent / "services"
HEALTH = service("health", type="LoadBalancer", ports=(NODE_PORT,), external_policy="Local", health_port=31234)
CROWD = [on("n1", number) for number in range(2, 253)]


def _settings(**fields: object) -> ProxySettings:
    return ProxySettings(**{"pod_cidrs": SETTINGS.pod_cidrs, "service_cidrs": SETTINGS.service_cidrs, **fields})  # type: ignore[arg-type]


def _same(of: Service, settings: ProxySettings = SETTINGS) -> Construct:
    slices = (backends(of, on("n1", 2), on("n2", 2)),)
    return Construct((of,), slices, "nothing changes", (of,), slices, settings)


OWN: dict[str, Construct] = {
    "health-check": _same(HEALTH),
    "three-endpoints": Construct(
        (service(),),
        (backends(service(), on("n1", 2), on("n1", 10), on("n2", 2)),),
        "an endpoint goes",
        (service(),),
        (backends(service(), on("n1", 2), on("n2", 2)),),
    ),
    "node-hints": Construct(
        (service(),),
        (backends(service(), on("n1", 2, nodes=("n1",)), on("n2", 2, nodes=("n2",))),),
        "no endpoint is for this node",
        (service(),),
        (backends(service(), on("n1", 2, nodes=("n2",)), on("n2", 2, nodes=("n2",))),),
    ),
    "node-port-addresses": _same(
        service(type="NodePort", ports=(NODE_PORT,)), _settings(node_port_cidrs=("192.168.50.0/24", "127.0.0.0/8"))
    ),
    "node-port-primary": _same(service(type="NodePort", ports=(NODE_PORT,)), _settings(node_port_cidrs=("primary",))),
    "no-localhost": _same(service(type="NodePort", ports=(NODE_PORT,)), _settings(localhost_node_ports=False)),
    "be-liberal": _same(service(), _settings(tcp_be_liberal=True)),
    "internal-and-external-local": Construct(
        (service(internal_policy="Local", external_policy="Local", type="NodePort", ports=(NODE_PORT,)),),
        (backends(service(), on("n1", 2), on("n2", 2)),),
        "only remote endpoints are left",
        (service(internal_policy="Local", external_policy="Local", type="NodePort", ports=(NODE_PORT,)),),
        (backends(service(), on("n2", 2)),),
    ),
}
ALL = CONSTRUCTS | OWN
COMMON = "KUBE-POSTROUTING", "KUBE-MARK-MASQ", "KUBE-FORWARD", "KUBE-FIREWALL", "KUBE-PROXY-CANARY"


def planned(construct: Construct, node: int = 0) -> tuple[list[ProxyRules], list[ProxyRules]]:
    """The rules of one node, before and after the change."""
    proxy = iptables.load(construct.settings)
    before, after = (
        [item for item in proxy.node(cluster, cluster.nodes[node]) if isinstance(item, ProxyRules)]
        for cluster in clusters(construct)
    )
    return before, after


def text_of(name: str) -> str:
    """What the Services put into the tables, and the transaction of the change."""
    words = []
    for old, new in zip(*planned(ALL[name]), strict=True):
        program = "ip6tables" if new.family == 6 else "iptables"
        words.append(f"# {program}: Services' rules")
        for table, chains in old.tables.items():
            lines = [line for chain, text in chains.items() if chain not in COMMON for line in text.splitlines()]
            words += [f"*{table}", *lines] if lines else []
        if new != old:
            words += ["", f"# {program}, then {ALL[name].changed}", partial_text(new, old)]
    return "\n".join(words).rstrip("\n") + "\n"


def compare(path: Path, text: str) -> None:
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ALL)
def test_the_rules_are_the_golden_ones(name: str) -> None:
    compare(FOLDER / f"{name}.iptables", text_of(name))


@pytest.mark.parametrize("family", [0, 1])
def test_a_full_sync_without_services(family: int) -> None:
    rules = planned(Construct((), (), "", (), ()))[0][family]
    hooks = {
        table: [
            line for chain in dict.fromkeys(jump.chain for jump in jumps) for line in hook_lines(rules, table, chain, 1)
        ]
        for table, jumps in rules.jumps.items()
    }
    compare(FOLDER / f"frame-{('ipv4', 'ipv6')[family]}.iptables", full_text(rules, hooks))


def test_the_jumps_stand_in_the_order_of_a_real_node() -> None:
    new = "-m conntrack --ctstate NEW -m comment --comment "
    visible = f'{new}"kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES'
    firewall = f'{new}"kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL'
    portals = f'{new}"kubernetes service portals" -j KUBE-SERVICES'
    rules = planned(ALL["cluster-ip"])[0][0]

    assert [(table, jump.chain, rule_text(jump.rule)) for table, jumps in rules.jumps.items() for jump in jumps] == [
        ("filter", "INPUT", firewall),
        ("filter", "INPUT", '-m comment --comment "kubernetes health check service ports" -j KUBE-NODEPORTS'),
        ("filter", "INPUT", visible),
        ("filter", "INPUT", "-j KUBE-FIREWALL"),
        ("filter", "FORWARD", firewall),
        ("filter", "FORWARD", '-m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD'),
        ("filter", "FORWARD", portals),
        ("filter", "FORWARD", visible),
        ("filter", "OUTPUT", firewall),
        ("filter", "OUTPUT", portals),
        ("filter", "OUTPUT", "-j KUBE-FIREWALL"),
        ("nat", "PREROUTING", '-m comment --comment "kubernetes service portals" -j KUBE-SERVICES'),
        ("nat", "OUTPUT", '-m comment --comment "kubernetes service portals" -j KUBE-SERVICES'),
        ("nat", "POSTROUTING", '-m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING'),
    ]


def test_a_large_cluster_drops_the_comments_of_endpoints_rules() -> None:
    ports = tuple(
        HTTP.__class__(name=f"p{number}", protocol="TCP", port=number, target=number) for number in range(80, 84)
    )
    small, large = service(ports=ports[:3]), service(ports=ports)
    slices = (backends(large, *CROWD),)  # 4 ports of 251 endpoints
    before, after = planned(Construct((small,), slices, "a port more", (large,), slices))

    kept, dropped = before[0].tables["nat"], after[0].tables["nat"]
    endpoint = next(chain for chain in kept if chain.startswith("KUBE-SEP-"))
    balancer = next(chain for chain in kept if chain.startswith("KUBE-SVC-"))
    assert "--comment" in kept[endpoint]
    assert dropped[endpoint] == kept[endpoint].replace(" -m comment --comment ns1/web:p80", "")
    assert kept[balancer].count("--comment") == 252
    assert dropped[balancer].count("--comment") == 1  # "cluster IP", of the first rule
    assert len(after[0].tables["nat"]["KUBE-SERVICES"].split("--comment")) == 1 + 4 + 1


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("node-port", True), ("no-localhost", False), ("node-port-addresses", True), ("node-port-primary", False)],
)
def test_route_localnet_and_its_firewall_go_with_node_ports_on_localhost(name: str, wanted: bool) -> None:
    cluster, _ = clusters(ALL[name])
    items = list(iptables.load(ALL[name].settings).node(cluster, cluster.nodes[0]))

    sysctls = {item.name: item.value for item in items if isinstance(item, Sysctl)}
    four, six = (item for item in items if isinstance(item, ProxyRules))
    assert sysctls == ({"net/ipv4/conf/all/route_localnet": "1"} if wanted else {})
    assert bool(four.tables["filter"]["KUBE-FIREWALL"]) is wanted
    assert not six.tables["filter"]["KUBE-FIREWALL"]
