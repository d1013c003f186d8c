"""kindnet's network policies: kube-network-policies, which judges the first packet of a connection in user space.

Every node has the rules that queue packets (``emulator.policy.kindnet_rules``), from the first policy on an agent that
reads the queue (``emulator.kernel.kindnet_agent``), and a file with what the agent must know: all pods of the cluster,
and all policies with their selections resolved. The real agent watches the API server for the same.

Source: kubernetes-sigs/kube-network-policies v1.1.2 pkg/networkpolicy, pkg/dataplane, with the settings of
kubernetes-sigs/kind images/kindnetd/cmd/kindnetd/main.go.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from emulator.cluster.model import Cluster, Node
from emulator.plan.addressing import families_of, first_address
from emulator.plan.model import AnyObject, Daemon, File
from emulator.policy.compiled import Compiled
from emulator.policy.enforcer import Deviation, OnEveryNode, PolicyMode
from emulator.policy.evaluate import protocol_number
from emulator.policy.flow import Flow
from emulator.policy.kindnet_judge import PROTOCOLS, Configuration, Packet, judge, read_configuration
from emulator.policy.kindnet_rules import LABEL, MARK, QUEUE, Way, rules
from emulator.policy.model import Peer, Policy, PolicyKind, Rule

AGENT = "kindnet-policies"
COMPONENT = "kindnetd (stand-in)"
CONFIG, SOCKET = "/run/kindnet/policies.json", "/run/kindnet/policies.sock"
STAND_IN = "a policy agent of cnilab's for kindnetd's"
STAND_INS: dict[Way, str] = {
    "nft": STAND_IN,
    "iptables": f"{STAND_IN}, iptables' NFQUEUE for nftables' queue",
    "none": "",
}
TITLES: dict[Way, str] = {
    "nft": "nftables' queue",
    "iptables": "iptables' NFQUEUE for nftables' queue",
    "none": "no queue here",
}
_SOURCE = "kubernetes-sigs/kube-network-policies pkg/"

OWN_NODE = Deviation(
    "egress policies judge what a pod sends to its own node, though the API always lets it pass",
    source=f"{_SOURCE}dataplane/controller.go, kube-network-policies#339",
)
DNS = Deviation(
    "each packet of UDP to port 53 is judged, not only the first of a connection: a policy ends those that live",
    source=f"{_SOURCE}dataplane/controller.go addDNSRacersWorkaroundRules",
)
HAIRPIN = Deviation(
    "a pod that reaches itself through its Service is judged like any other peer; the API leaves that open",
    source=f"{_SOURCE}networkpolicy/engine.go",
)
QUEUED_BY_IPTABLES = Deviation(
    "iptables' NFQUEUE stands in for the queue statement of nftables, which this kernel does not have",
    source="docs/policy-kindnet.md",
)
BLIND = Deviation(
    "kindnetd's agent gets no packets: this kernel has neither nftables' queue nor iptables' NFQUEUE",
    source="cnilab doctor",
    unenforced=True,
)


def load(mode: PolicyMode, way: Way = "nft") -> KindnetPolicies:
    """The enforcer, for one lab; ``way`` is how packets get to the agent."""
    return KindnetPolicies(mode, way)


class KindnetPolicies(OnEveryNode):
    """kindnetd with its network policies. It remembers what it wrote of the last cluster: every node gets the same."""

    name = "kindnet"
    kinds: frozenset[PolicyKind] = frozenset(("NetworkPolicy",))

    def __init__(self, mode: PolicyMode, way: Way) -> None:
        self.mode = mode
        self._way = way
        self.title = f"kube-network-policies (kindnet) · {TITLES[way]}"
        self.stand_in = STAND_INS[way]
        self.requires: tuple[str, ...] = REQUIRED[way]
        self._of: Compiled | None = None
        self._text = ""
        self._known: Configuration | None = None

    # -- a node ---------------------------------------------------------------------------------------------

    def node(self, cluster: Cluster, compiled: Compiled, node: Node) -> Iterator[AnyObject]:
        """The rules, and as soon as there is a policy the agent with what it must know."""
        judged = self._judged(compiled)
        addresses = sorted(
            address
            for pod in cluster.pods_on(node.name)
            if pod.key in judged and not pod.host_network
            for address in pod.addresses
        )
        yield from rules(node, addresses, families_of(cluster.topology.pod_cidrs), self._way)
        if self._way == "none" or not self._read(compiled.policies):
            return
        yield File(
            ns=node.ns,
            path=CONFIG,
            content=self._content(compiled),
            component=COMPONENT,
            why="the cluster's pods and policies, as kindnetd sees them through the API server",
        )
        yield Daemon(
            ns=node.ns,
            name=AGENT,
            argv=(AGENT, CONFIG, SOCKET, "--queue", str(QUEUE), *self._begun, *self._own(cluster, node)),
            module="emulator.kernel.kindnet_agent",
            files=(CONFIG,),
            ready_socket=SOCKET,
            before_devices=True,
            loss="no policy holds there: the queue's packets pass (bypass)",
            component=COMPONENT,
            why=f"says of each packet in queue {QUEUE} whether its connection may begin",
        )

    @property
    def _begun(self) -> tuple[str, str]:
        """By what later packets are known to belong to a connection that the agent let begin."""
        return ("--label", str(LABEL)) if self._way == "nft" else ("--mark", f"{MARK:#x}")

    def _own(self, cluster: Cluster, node: Node) -> tuple[str, ...]:
        """In ``spec`` mode the agent is told whom it must never keep from the node's pods."""
        if self.mode == "faithful":
            return ()
        machine = next(each for each in cluster.topology.machines if each.name == node.name)
        held = {link.partition("/")[0] for interface in machine.interfaces for link in interface.addresses}
        held.update(node.addresses, (first_address(subnet, 1) for subnet in node.pod_ranges))
        return tuple(word for address in sorted(held) for word in ("--own", address))

    def _read(self, policies: Iterable[Policy]) -> list[Policy]:
        return [policy for policy in policies if policy.kind in self.kinds]

    def _judged(self, compiled: Compiled) -> frozenset[str]:
        """The pods that some policy selects."""
        return frozenset().union(*(compiled.selected(policy) for policy in self._read(compiled.policies)))

    def _content(self, compiled: Compiled) -> str:
        if self._of is not compiled:
            self._text = json.dumps(_known(compiled, self._read(compiled.policies)), indent=1) + "\n"
            self._of, self._known = compiled, None
        return self._text

    # -- what it does otherwise -----------------------------------------------------------------------------

    def deviations(self, cluster: Cluster, compiled: Compiled) -> Iterator[Deviation]:
        for policy in compiled.policies:
            if policy.kind not in self.kinds:
                what = f"kindnetd does not read {policy.kind}"
                yield Deviation(what, policy=policy.key, source="kubernetes-sigs/kind kindnetd", unenforced=True)
        read = [policy for policy in self._read(compiled.policies) if compiled.selected(policy)]
        if not read:
            return
        if self._way == "none":
            yield BLIND
            return
        if self._way == "iptables":
            yield QUEUED_BY_IPTABLES
        if self.mode == "faithful":
            if any(policy.egress is not None for policy in read):
                yield OWN_NODE
            yield DNS
        if cluster.services:
            yield HAIRPIN

    def deviates(self, compiled: Compiled, flow: Flow, *, allowed: bool) -> Deviation | None:
        if self._way == "none":
            return None if allowed else BLIND
        verdict = self._passes(compiled, flow)
        if verdict == allowed:
            return None
        unread = [policy.key for policy in compiled.policies if policy.kind not in self.kinds]
        return Deviation("kindnetd reads NetworkPolicy alone", policy=unread[0]) if unread else OWN_NODE

    def _passes(self, compiled: Compiled, flow: Flow) -> bool:
        """What becomes of a flow."""
        source, target = flow.source, flow.destination
        if source.kind == target.kind == "pod" and source.name == target.name:
            return True
        if source.kind == "node" and target.kind == "pod" and source.name == compiled.pods[target.name].node:
            return True  # a process of root
        own = target.kind == "node" and source.kind == "pod" and target.name == compiled.pods[source.name].node
        if own and self.mode == "spec":
            return True
        self._content(compiled)
        if self._known is None:
            self._known = read_configuration(self._text)
        protocol = PROTOCOLS.get(protocol_number(flow.protocol), "")
        packet = Packet(source.address, target.address, protocol, flow.source_port, flow.port)
        return judge(self._known, packet).allowed


REQUIRED: dict[Way, tuple[str, ...]] = {
    "nft": ("nft-queue",),
    "iptables": ("iptables", "iptables-restore", "nfqueue", "ipset", "ipset-program"),
    "none": (),
}


def _known(compiled: Compiled, policies: Iterable[Policy]) -> dict[str, Any]:
    """What the agent reads (:func:`emulator.policy.kindnet_judge.read_configuration`)."""
    ports: dict[str, list[tuple[str, str, int]]] = {}
    for key, pod in sorted(compiled.pods.items()):
        for port in (port for container in pod.containers for port in container.ports if port.name):
            ports.setdefault(key, []).append((port.name, port.protocol, port.port))
    return {
        "pods": {address: key for key, pod in sorted(compiled.pods.items()) for address in pod.addresses},
        "ports": ports,
        "policies": [
            {
                "key": policy.key,
                "selects": sorted(compiled.selected(policy)),
                "egress": _rules(compiled, policy.egress),
                "ingress": _rules(compiled, policy.ingress),
            }
            for policy in policies
        ],
    }


def _rules(compiled: Compiled, given: tuple[Rule, ...] | None) -> list[dict[str, Any]] | None:
    if given is None:
        return None
    return [
        {
            "peers": [_peer(compiled, peer) for peer in rule.peers] or None,
            "ports": [(port.protocol, port.first, port.last, port.name) for port in rule.ports] or None,
        }
        for rule in given
    ]


def _peer(compiled: Compiled, peer: Peer) -> dict[str, Any]:
    if peer.pods is not None:
        return {"pods": sorted(compiled.members[peer.pods])}
    return {"net": peer.nets[0], "except": list(peer.not_nets)}
