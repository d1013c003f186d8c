"""What each network namespace must hold: the plan, as plain immutable data.

A CNI style turns a cluster into a :class:`Plan`; ``emulator.kernel`` makes it so. Nothing here touches
the kernel, and every object says why it is there and which component of the real system makes it.

The objects are ``msgspec.Struct`` rather than dataclasses: a plan of a thousand pods has some twenty
thousand of them, and structs are built, compared and written as JSON in C.

Namespaces are named by kind: ``underlay`` (all switches; the lab's own network namespace),
``node/n1``, ``router/tor``, ``host/client``, ``pod/default/web-0``.

The kinds of objects stand in ``emulator.plan.devices``, ``rules`` and ``processes``; all have their names here too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, TypeAlias

import msgspec

from emulator.plan.devices import (
    Address,
    Bridge,
    BridgePort,
    DeviceObject,
    Dummy,
    FdbEntry,
    Impairment,
    Ipip,
    Link,
    Namespace,
    Neighbour,
    Offloads,
    PolicyRule,
    Route,
    Sysctl,
    Tun,
    Veth,
    Vxlan,
    Wireguard,
    WireguardPeer,
)
from emulator.plan.object import FAULT, UNDERLAY, Family, Key, PlanObject
from emulator.plan.processes import (
    CniAttachment,
    Daemon,
    File,
    PluginDevice,
    ProcessObject,
)
from emulator.plan.rules import (
    Chain,
    IpSet,
    IptablesRules,
    IpvsServers,
    Jump,
    NftChain,
    NftElement,
    NftPart,
    NftRules,
    NftSet,
    NftTable,
    ProxyRules,
    RealServer,
    Rule,
    RuleObject,
    VirtualServer,
)

__all__ = [
    "FAULT",
    "UNDERLAY",
    "Address",
    "AnyObject",
    "Bridge",
    "BridgePort",
    "Chain",
    "CniAttachment",
    "Daemon",
    "Dummy",
    "Family",
    "FdbEntry",
    "File",
    "Impairment",
    "IpSet",
    "Ipip",
    "IptablesRules",
    "IpvsServers",
    "Jump",
    "Key",
    "Link",
    "Namespace",
    "Neighbour",
    "NftChain",
    "NftElement",
    "NftPart",
    "NftRules",
    "NftSet",
    "NftTable",
    "Offloads",
    "Plan",
    "PlanObject",
    "PluginDevice",
    "PolicyRule",
    "ProxyRules",
    "RealServer",
    "Route",
    "Rule",
    "Sysctl",
    "Tun",
    "Veth",
    "VirtualServer",
    "Vxlan",
    "Wireguard",
    "WireguardPeer",
]

AnyObject: TypeAlias = DeviceObject | RuleObject | ProcessObject


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a lab must hold.

    Objects stand in fragments, one for the underlay, one a node, one a pod (``node/n1``,
    ``pod/default/web-0``): adding a pod makes one new fragment, and the diff compares the others by
    identity. Within a fragment, an object that appears later wins nothing: keys are unique in a plan.
    ``wire_accurate``: offloads are off on every device, so that frames are as on a wire.
    """

    style: str
    topology: str
    fragments: dict[str, tuple[AnyObject, ...]]
    wire_accurate: bool = False

    SCHEMA: ClassVar[str] = "cnilab.plan/v1"

    def __iter__(self) -> Iterator[AnyObject]:
        for objects in self.fragments.values():
            yield from objects

    def in_namespace(self, ns: str) -> Iterator[AnyObject]:
        """The objects that namespace ``ns`` holds, in plan order."""
        return (item for item in self if item.ns == ns)
