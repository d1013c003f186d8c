"""BIRD 2 configuration for a router of the underlay that speaks BGP with nodes and with other routers.

::

    kernel: static routes of the underlay ──┐                    ┌── kernel: routes to pods, proto bird
    direct: connected networks ─────────────┼── table master4/6 ─┤
    bgp: nodes and routers ─────────────────┘                    └── bgp: what lies in the cluster's pools, nothing else

It stands for whatever the rack has on top: its internal peers are its clients (RFC 4456), and what it learns from other
autonomous systems it tells them under its own address.

Sources: docs.tigera.io "Configure BGP peering" and "Calico over IP fabrics" (the AS-per-rack and downward-default
designs), BIRD 2.0 user's guide.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Literal

from emulator.errors import CnilabError
from emulator.routing.bgp import Session
from emulator.routing.bird import CONNECT_DELAY, CONNECT_RETRY, ERROR_WAIT, PASSWORD, SCAN_TIME


@dataclass(frozen=True)
class RouterFamily:
    """One address family of a router: the pools that it carries, and its sessions."""

    version: Literal[4, 6]
    pools: tuple[str, ...]
    sessions: tuple[Session, ...]


def router_config(router_id: str, families: Sequence[RouterFamily]) -> str:
    """The whole ``bird.conf``. Raises CnilabError for a value that could end a statement early."""
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
    parts += ["", "protocol direct {", *(f"  ipv{family.version};" for family in families), "}"]
    for family in families:
        _validate(family)
        parts += ["", *_filters(family), "", *_kernel(family)]
        for session in family.sessions:
            parts += ["", *_session(family, session)]
    return "\n".join(parts) + "\n"


def _validate(family: RouterFamily) -> None:
    for cidr in family.pools:
        ip_network(cidr)
    for session in family.sessions:
        for address in (session.local_address, session.remote_address):
            if ip_address(address).version != family.version:
                raise CnilabError(f"failed to write bird.conf of {session.local}: {address} is not IPv{family.version}")
        if not PASSWORD.fullmatch(session.password):
            raise CnilabError(f"failed to write bird.conf of {session.local}: the password is no text")


def _filters(family: RouterFamily) -> Iterator[str]:
    yield f"filter pods_v{family.version} {{"
    yield from (f"  if (net ~ {pool}) then {{ accept; }}" for pool in family.pools)
    yield "  reject;"
    yield "}"


def _kernel(family: RouterFamily) -> Iterator[str]:
    yield f"protocol kernel kernel{family.version} {{"
    yield "  learn;               # the underlay's static routes resolve next hops"
    yield f"  scan time {SCAN_TIME};"
    yield "  metric 0;"
    yield "  merge paths on;      # ECMP"
    yield f"  ipv{family.version} {{"
    yield "    import all;"
    yield "    export where source = RTS_BGP;"
    yield "  };"
    yield "}"


def _session(family: RouterFamily, session: Session) -> Iterator[str]:
    yield f"# {session.remote}"
    yield f"protocol bgp {session.protocol} {{"
    yield "  debug { states };"
    yield f"  local {session.local_address} as {session.local_asn};"
    yield f"  neighbor {session.remote_address} as {session.remote_asn};"
    if session.direct:
        yield "  direct;"
    if session.client:
        yield "  rr client;"
        yield f"  rr cluster id {session.cluster};"
    if session.password:
        yield f'  password "{session.password}";'
    yield f"  connect delay time {CONNECT_DELAY};"
    yield f"  connect retry time {CONNECT_RETRY};"
    yield f"  error wait time {ERROR_WAIT};"
    yield f"  ipv{family.version} {{"
    yield f"    import filter pods_v{family.version};"
    yield f"    export filter pods_v{family.version};"
    if session.next_hop_self:
        yield "    next hop self ebgp;"
    yield "    add paths on;"
    yield "  };"
    yield "}"
