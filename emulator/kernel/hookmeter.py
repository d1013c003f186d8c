"""Exact counts of netfilter hook passes: how often packets of each flow crossed each hook of each namespace.

::

    table inet cnilab_meter, in every metered namespace
      chain prerouting   type filter hook prerouting  priority -450  ─┐
      chain input        ...                                          │  update @<hook>4 { saddr . daddr . l4proto }
      chain forward                                                   │  update @<hook>6 { the same of IPv6 }
      chain output                                                    │  both sets with counters
      chain postrouting  ...                          priority  450  ─┘

Before defragmentation (-400), so that fragments count as the packets that they are; after source NAT (100) at
postrouting, so that the addresses are those that leave. Only counters: no rule has a verdict, and the chains' policy
is accept. On a bridge whose frames go through iptables (bridge-nf-call-iptables) the same hooks run, and count.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from emulator.errors import ApplyError, Unsupported
from emulator.kernel.syscalls import inside

TABLE = "cnilab_meter"
HOOKS = {"prerouting": -450, "input": -450, "forward": -450, "output": -450, "postrouting": 450}
FLOWS = 65_536  # elements of one set: address pairs times protocols
TOOL_TIMEOUT = 30.0  # seconds
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"

Flow = tuple[str, str, int]  # source, target, protocol number
Counts = dict[str, dict[Flow, int]]  # by hook


class Places(Protocol):
    """Where namespaces are found (``emulator.kernel.devices.Devices``)."""

    def netns(self, ns: str) -> str | int: ...


class Metered(Protocol):
    """What a meter needs of the applier."""

    @property
    def devices(self) -> Places: ...


class HookMeter:
    """Counts in the namespaces that it was installed in, until it is removed from them or they die."""

    def __init__(self, applier: Metered) -> None:
        self._netns: Callable[[str], str | int] = applier.devices.netns
        self._installed: dict[str, None] = {}

    def install(self, namespaces: Iterable[str]) -> None:
        """Start counting at zero in each. Raises ApplyError, Unsupported."""
        for ns in namespaces:
            self._nft(ns, _fresh_table())
            self._installed[ns] = None

    def remove(self, namespaces: Iterable[str] | None = None) -> None:
        """Stop counting, everywhere by default."""
        for ns in list(self._installed if namespaces is None else namespaces):
            if self._installed.pop(ns, ns) is None:
                self._nft(ns, _no_table())

    def reset(self) -> None:
        """Set every count to zero. A namespace that is gone is forgotten."""
        for ns in list(self._installed):
            try:
                self._nft(ns, _no_flows())
            except FileNotFoundError:
                del self._installed[ns]

    def read(self) -> dict[str, Counts]:
        """Packets by namespace, hook and flow, since :meth:`install` or :meth:`reset`."""
        found: dict[str, Counts] = {}
        for ns in list(self._installed):
            try:
                listing = self._nft(ns, None)
            except (FileNotFoundError, KeyError):
                del self._installed[ns]
                continue
            found[ns] = parse_counts(json.loads(listing)["nftables"])
        return found

    def _nft(self, ns: str, text: str | None) -> str:
        argv = ["nft", "-f", "-"] if text is not None else ["nft", "-j", "list", "table", "inet", TABLE]
        with inside(self._place(ns)):
            try:
                result = subprocess.run(
                    argv,
                    input=text,
                    text=True,
                    capture_output=True,
                    check=False,
                    timeout=TOOL_TIMEOUT,
                    env={"PATH": PATH, "LC_ALL": "C"},
                )
            except FileNotFoundError as error:
                raise Unsupported("nft is not installed: hook passes cannot be counted", features=("nft",)) from error
        if result.returncode:
            raise ApplyError(f"failed to count hook passes in {ns}: {' '.join(result.stderr.split())}")
        return result.stdout

    def _place(self, ns: str) -> str | int:
        try:
            return self._netns(ns)
        except KeyError:
            raise FileNotFoundError(ns) from None


def parse_counts(objects: Sequence[Mapping[str, Any]]) -> Counts:
    """The counts in what ``nft -j list table`` says."""
    counts: Counts = {hook: {} for hook in HOOKS}
    for entry in objects:
        group = entry.get("set")
        if group is None:
            continue
        hook = str(group["name"])[:-1]
        for item in group.get("elem", ()):
            source, target, protocol = item["elem"]["val"]["concat"]
            flow = (str(source), str(target), protocol_number(protocol))
            counts[hook][flow] = counts[hook].get(flow, 0) + int(item["elem"]["counter"]["packets"])
    return counts


def protocol_number(said: str | int) -> int:
    """nft writes protocols that it has a name for by name."""
    return said if isinstance(said, int) else _NUMBERS.get(said) or int(said)


# /etc/protocols, as far as nft 1.0 knows names of its own (proto_inet_service, inet_protocol_type)
_NUMBERS = {
    "icmp": 1,
    "igmp": 2,
    "ipencap": 4,
    "tcp": 6,
    "udp": 17,
    "dccp": 33,
    "ipv6": 41,
    "gre": 47,
    "esp": 50,
    "ah": 51,
    "icmpv6": 58,
    "ipv6-icmp": 58,
    "ospf": 89,
    "ospfigp": 89,
    "vrrp": 112,
    "comp": 108,
    "ipcomp": 108,
    "sctp": 132,
    "udplite": 136,
}


def _no_table() -> str:
    # Declared first: deleting a table that is not there would be an error.
    return f"table inet {TABLE} {{}}\ndelete table inet {TABLE}\n"


def _no_flows() -> str:
    return "".join(f"flush set inet {TABLE} {hook}{version}\n" for hook in HOOKS for version in (4, 6))


def _fresh_table() -> str:
    lines = [_no_table(), f"table inet {TABLE} {{\n"]
    lines += [
        f" set {hook}{version} {{\n  type ipv{version}_addr . ipv{version}_addr . inet_proto;\n"
        f"  flags dynamic; size {FLOWS}; counter;\n }}\n"
        for hook in HOOKS
        for version in (4, 6)
    ]
    lines += [
        f" chain {hook} {{\n  type filter hook {hook} priority {priority}; policy accept;\n"
        f"  meta nfproto ipv4 update @{hook}4 {{ ip saddr . ip daddr . meta l4proto }}\n"
        f"  meta nfproto ipv6 update @{hook}6 {{ ip6 saddr . ip6 daddr . meta l4proto }}\n }}\n"
        for hook, priority in HOOKS.items()
    ]
    return "".join([*lines, "}\n"])
