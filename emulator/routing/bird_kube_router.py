"""BIRD 2 configuration that does on a node what kube-router's built-in GoBGP does there.

::

    static: podCIDR ──┐                    ┌── kernel: routes of peers, by their node or by a tunnel device
    direct: eth0 ─────┼── table master4/6 ─┤
                      └────────────────────┴── bgp: one session per peer, both families on it

kube-router takes each best path out of GoBGP and writes its route itself (injectRoute): by the next hop if that is in
the node's own subnet, else by the tunnel to it, else not at all. Here the kernel protocol's filter decides the same,
so that a route comes and goes with its session. Its protocol number is BIRD's, 12, not the 17 (zebra) of kube-router.

Nothing but addresses, CIDRs, numbers and device names enters a configuration, each checked first.

Sources: cloudnativelabs/kube-router pkg/controllers/routing (network_routes_controller.go, bgp_peers.go,
bgp_policies.go), pkg/tunnels/linux_tunnels.go; bird.network.cz user's guide 2.0.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

from emulator.errors import CnilabError
from emulator.plan.addressing import default_route
from emulator.plan.model import Family
from emulator.routing.bgp import Session
from emulator.routing.bird import CONNECT_DELAY, CONNECT_RETRY, ERROR_WAIT, PASSWORD, SCAN_TIME

HOLD_TIME = 90  # seconds: --bgp-holdtime

_DEVICE = re.compile(r"[A-Za-z0-9._-]{1,15}")


@dataclass(frozen=True)
class NodeFamily:
    """One address family of a node. ``subnet`` is its own, in which next hops are neighbours (empty: none are).
    ``tunnels`` maps next hops to devices. ``ranges`` are its pod CIDRs."""

    version: Family
    address: str
    ranges: tuple[str, ...]
    subnet: str
    tunnels: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class NodeSpeaker:
    """What a node's configuration is made of. A ``reflector`` passes on what it hears."""

    router_id: str
    device: str
    bridge: str
    families: tuple[NodeFamily, ...]
    sessions: Sequence[Session]
    reflector: bool = False


def node_config(speaker: NodeSpeaker) -> str:
    """The whole ``bird.conf``. Raises CnilabError for a value that could end a statement early."""
    _validate(speaker)
    channels = [f"  ipv{family.version};" for family in speaker.families]
    parts = [
        "# in place of kube-router's GoBGP",
        "log stderr all;",
        "",
        f"router id {speaker.router_id};",
        "",
        "protocol device {",
        f"  scan time {SCAN_TIME};",
        "}",
        "",
        "protocol direct {",
        *channels,
        f'  interface "{speaker.device}";  # where next hops are neighbours',
        "}",
    ]
    for family in speaker.families:
        parts += ["", *_kernel(family), "", *_static(speaker, family)]
    parts += ["", *_policies(speaker)]
    for session in speaker.sessions:
        parts += ["", *_session(speaker, session)]
    return "\n".join(parts) + "\n"


def _validate(speaker: NodeSpeaker) -> None:
    ip_address(speaker.router_id)
    devices = [speaker.device, speaker.bridge]
    for family in speaker.families:
        devices += [device for _, device in family.tunnels]
        for cidr in (*family.ranges, *((family.subnet,) if family.subnet else ())):
            ip_network(cidr)
        for address in (family.address, *(hop for hop, _ in family.tunnels)):
            ip_address(address)
    for device in devices:
        if not _DEVICE.fullmatch(device):
            raise CnilabError(f"failed to write bird.conf: {device!r} is no device")
    for session in speaker.sessions:
        for address in (session.local_address, session.remote_address):
            ip_address(address)
        if not PASSWORD.fullmatch(session.password):
            raise CnilabError(f"failed to write bird.conf of {session.local}: the password is no text")


def _kernel(family: NodeFamily) -> Iterator[str]:
    yield f"filter inject_route_v{family.version} {{"
    yield "  if source != RTS_BGP then reject;"
    if family.subnet:
        yield f"  if bgp_next_hop ~ {family.subnet} then accept;  # a neighbour"
    for hop, device in family.tunnels:
        yield f"  if bgp_next_hop = {hop} then {{"
        yield f'    ifname = "{device}";'
        yield f"    krt_prefsrc = {family.address};"
        yield "    accept;"
        yield "  }"
    yield "  reject;  # the underlay must know the way"
    yield "}"
    yield ""
    yield f"protocol kernel kernel{family.version} {{"
    yield "  learn;               # the default route resolves next hops in other subnets"
    yield f"  scan time {SCAN_TIME};"
    yield "  metric 0;"
    yield f"  ipv{family.version} {{"
    yield "    import all;"
    yield f"    export filter inject_route_v{family.version};"
    yield "  };"
    yield "}"


def _static(speaker: NodeSpeaker, family: NodeFamily) -> Iterator[str]:
    yield f"protocol static pods{family.version} {{"
    yield f"  ipv{family.version};"
    yield from (f'  route {cidr} via "{speaker.bridge}";' for cidr in family.ranges)
    yield "}"


def _policies(speaker: NodeSpeaker) -> Iterator[str]:
    for family in speaker.families:
        yield f"filter kube_router_import_v{family.version} {{"
        yield f"  if net = {default_route(family.version)} then reject;"
        yield "  accept;"
        yield "}"
        yield ""
    yield "filter kube_router_export {"
    yield "  if source = RTS_STATIC then accept;  # this node's podCIDR"
    if speaker.reflector:
        yield "  if source = RTS_BGP then accept;  # a route reflector has no export policy"
    yield "  reject;"
    yield "}"


def _session(speaker: NodeSpeaker, session: Session) -> Iterator[str]:
    port = f" port {session.port}" if session.port else ""
    yield f"protocol bgp {session.protocol} {{"
    yield "  debug { states };"
    yield f"  local {session.local_address} as {session.local_asn};"
    yield f"  neighbor {session.remote_address}{port} as {session.remote_asn};"
    yield f"  hold time {HOLD_TIME};"
    yield f"  connect delay time {CONNECT_DELAY};"
    yield f"  connect retry time {CONNECT_RETRY};"
    yield f"  error wait time {ERROR_WAIT};"
    if session.client:
        yield "  rr client;"
        yield f"  rr cluster id {session.cluster};"
    if session.password:
        yield f'  password "{session.password}";'
    own = ip_address(session.local_address).version
    for family in speaker.families:
        if not session.internal and family.version != own:
            continue
        yield f"  ipv{family.version} {{"
        yield f"    import filter kube_router_import_v{family.version};"
        if session.prepend:
            yield "    export filter {"
            yield from (f"      bgp_path.prepend({asn});" for asn in session.prepend)
            yield "      if source = RTS_STATIC then accept;"
            yield "      reject;"
            yield "    };"
        else:
            yield "    export filter kube_router_export;"
        if family.version != own:
            yield f"    next hop address {family.address};"
        yield "  };"
    yield "}"
