"""MetalLB in layer 2 mode: one node answers ARP and NDP for an address, and all traffic to it enters there.

::

    client ── router ── who has VIP? ──┬── n1  speaker: not mine
                                       ├── n2  speaker: VIP is at n2's MAC ── kube-proxy: KUBE-EXT-… ── a pod anywhere
                                       └── n3  speaker: not mine

The address is on no device. Speakers know from one another who is alive; the one whose node and address have the
smallest hash announces. Speakers are cnilab's own (``emulator.kernel.metallb_speaker``).

Sources: metallb/metallb speaker/layer2_controller.go, speaker/speakerlist.go, internal/layer2; metallb.io "MetalLB in
layer 2 mode".
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from emulator.balancer.announcing import announcers, balanced, elected, speakers
from emulator.cluster.model import Cluster, LoadBalancer, Machine, Node
from emulator.cni.style import Style
from emulator.errors import Unsupported
from emulator.plan.model import AnyObject, Daemon, File

SPEAKER_CONFIG, SPEAKER_SOCKET = "/run/metallb/speaker.json", "/run/metallb/speaker.sock"
SPEAKER = "speaker"
COMPONENT = "MetalLB speaker (stand-in)"


@dataclass(frozen=True)
class MetalLbL2:
    """MetalLB with an L2Advertisement for all addresses."""

    balancer: LoadBalancer
    style: Style
    title: str = "MetalLB · layer 2"
    stand_in: str = "speakers of cnilab's for MetalLB's"
    requires: tuple[str, ...] = ()

    def check(self, cluster: Cluster) -> None:
        if reason := self.style.strict_underlay:
            raise Unsupported(
                f"MetalLB cannot announce addresses under {self.style.name}: {reason}",
                hint="take a topology without loadBalancer, or one of kind cloud (docs/load-balancers.md)",
            )

    def notices(self, cluster: Cluster) -> tuple[str, ...]:
        return ()

    def node(self, cluster: Cluster, node: Node) -> Iterator[AnyObject]:
        nodes = speakers(cluster, self.balancer)
        if node not in nodes:
            return
        machine = next(one for one in cluster.topology.machines if one.name == node.name)
        configuration = {
            "node": node.name,
            "devices": [interface.name for interface in machine.interfaces],
            "listen": list(node.addresses),
            "peers": {peer.name: list(peer.addresses) for peer in nodes if peer.name != node.name},
            "addresses": self._claims(cluster),
        }
        yield File(
            ns=node.ns,
            path=SPEAKER_CONFIG,
            content=json.dumps(configuration, indent=2) + "\n",
            component=COMPONENT,
            why="the other speakers, and the nodes that may announce each address, the one with the first claim first",
        )
        yield Daemon(
            ns=node.ns,
            name=SPEAKER,
            argv=(SPEAKER, SPEAKER_CONFIG, SPEAKER_SOCKET),
            module="emulator.kernel.metallb_speaker",
            files=(SPEAKER_CONFIG,),
            ready_socket=SPEAKER_SOCKET,
            component=COMPONENT,
            why="answers ARP and NDP for the addresses that this node announces, and asks the others if they are alive",
        )

    def machine(self, cluster: Cluster, machine: Machine) -> Iterable[AnyObject]:
        return ()

    def _claims(self, cluster: Cluster) -> dict[str, list[str]]:
        """By address, the nodes in the order of their claim."""
        found: dict[str, list[str]] = {}
        for service, slices in balanced(cluster, self.balancer):
            nodes = [node.name for node in announcers(cluster, self.balancer, service, slices)]
            claims = list(elected(nodes, service.load_balancer[0].address))
            found.update({one.address: claims for one in service.load_balancer})
        return found


def announced(file: File) -> tuple[str, ...]:
    """The addresses that a speaker with this configuration may answer for."""
    if file.path != SPEAKER_CONFIG or file.component != COMPONENT:
        return ()
    told = json.loads(file.content)
    return tuple(address for address, nodes in told["addresses"].items() if told["node"] in nodes)
