"""BIRD 2 configuration for MetalLB's speaker in BGP mode: it tells routers of addresses, and learns nothing.

::

    static: VIP/32 ── table master4/6 ── bgp: to each router          (no kernel protocol: the node's routes stay)

BIRD stands in for the FRR that MetalLB's releases run beside the speaker. FRR there accepts no route of a peer, and
announces addresses without asking whether the node has a route to them; so does this.

Sources: metallb/metallb internal/bgp/frr/templates; metallb.io "MetalLB in BGP mode"; BIRD 2.0 user's guide.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Literal

from emulator.routing.bgp import Session
from emulator.routing.bird import CONNECT_DELAY, CONNECT_RETRY, ERROR_WAIT, SCAN_TIME


@dataclass(frozen=True)
class AnnouncedFamily:
    """One address family of a speaker: what it announces, and to whom."""

    version: Literal[4, 6]
    addresses: tuple[str, ...]
    sessions: tuple[Session, ...]


def speaker_config(router_id: str, hold_time: int, families: Sequence[AnnouncedFamily]) -> str:
    """The whole ``bird.conf``. ``hold_time`` in seconds. Raises ValueError for what is no address."""
    ip_address(router_id)
    parts = [
        "log stderr all;",
        "",
        f"router id {router_id};",
        "",
        "protocol device {",
        f"  scan time {SCAN_TIME};",
        "}",
    ]
    for family in families:
        for address in (*family.addresses, *(each.remote_address for each in family.sessions)):
            if ip_address(address).version != family.version:
                raise ValueError(f"{address} is not IPv{family.version}")
        parts += ["", *_addresses(family)]
        for session in family.sessions:
            parts += ["", *_session(family, session, hold_time)]
    return "\n".join(parts) + "\n"


def _addresses(family: AnnouncedFamily) -> Iterator[str]:
    length = 32 if family.version == 4 else 128
    yield f"protocol static metallb{family.version} {{"
    yield f"  ipv{family.version};"
    yield from (f"  route {address}/{length} blackhole;" for address in family.addresses)
    yield "}"


def _session(family: AnnouncedFamily, session: Session, hold_time: int) -> Iterator[str]:
    yield f"# {session.remote}"
    yield f"protocol bgp {session.protocol} {{"
    yield "  debug { states };"
    yield f"  local {session.local_address} as {session.local_asn};"
    yield f"  neighbor {session.remote_address} as {session.remote_asn};"
    yield "  direct;"
    yield f"  hold time {hold_time};"
    yield f"  keepalive time {max(1, hold_time // 3)};"
    yield f"  connect delay time {CONNECT_DELAY};"
    yield f"  connect retry time {CONNECT_RETRY};"
    yield f"  error wait time {ERROR_WAIT};"
    yield f"  ipv{family.version} {{"
    yield "    import none;"
    yield "    export where source = RTS_STATIC;"
    yield "  };"
    yield "}"
