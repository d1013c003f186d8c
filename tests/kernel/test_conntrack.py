"""The connection tracking of a namespace is read and pruned: what is asserted is what packets meet afterwards."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from emulator.errors import Unsupported
from emulator.kernel import conntrack_table
from emulator.kernel.applier import Applier
from emulator.kernel.conntrack import forget, udp_entries
from emulator.kernel.netns import netns_path
from emulator.kernel.syscalls import inside
from emulator.plan.diff import Operation
from emulator.plan.model import Address, AnyObject, Chain, IptablesRules, Jump, Namespace, Route, Rule, Sysctl, Veth
from emulator.proxy.conntrack import Entry

NODE, CLIENT, OLD, NEW = "node/n1", "pod/default/client", "pod/default/old", "pod/default/new"
SERVICE = {4: ("10.96.0.10", 53), 6: ("fd96::a", 53)}
PODS = {CLIENT: ("10.1.1.2", "fd01::1:2"), OLD: ("10.1.2.2", "fd01::2:2"), NEW: ("10.1.3.2", "fd01::3:2")}

pytestmark = [pytest.mark.sandbox, pytest.mark.requires("iptables", "conntrack")]


def pod(ns: str, number: int) -> Iterator[AnyObject]:
    device = f"v{number}"
    yield Namespace(ns=ns, role="pod", hostname=ns)
    yield Veth(ns=NODE, name=device, peer_ns=ns, peer="eth0", mtu=1500)
    for gateway, length, default in ((f"10.1.{number}.1", 24, "0.0.0.0/0"), (f"fd01::{number}:1", 112, "::/0")):
        yield Address(ns=NODE, device=device, address=f"{gateway}/{length}")
        yield Address(ns=ns, device="eth0", address=f"{PODS[ns][0 if length == 24 else 1]}/{length}")
        yield Route(ns=ns, destination=default, via=gateway, device="eth0")


def service(family: int, target: str) -> IptablesRules:
    """A Service's DNAT to one pod."""
    address, port = SERVICE[family]
    to = f"{target}:8053" if family == 4 else f"[{target}]:8053"
    rule = Rule(("-p", "udp", "-d", address, "--dport", str(port), "-j", "DNAT", "--to-destination", to))
    return IptablesRules(
        ns=NODE,
        family=family,  # type: ignore[arg-type]
        table="nat",
        owner="service",
        chains=(Chain("SVC", (rule,)),),
        jumps=(Jump("PREROUTING", Rule(("-j", "SVC"))),),
    )


@pytest.fixture
def applier() -> Iterator[Applier]:
    objects: list[AnyObject] = [
        Namespace(ns=NODE, role="node", hostname="n1"),
        Sysctl(ns=NODE, name="net/ipv4/ip_forward", value="1"),
        Sysctl(ns=NODE, name="net/ipv6/conf/all/forwarding", value="1"),
        # Or the node could not ask for its neighbours in the first second
        Sysctl(ns=NODE, name="net/ipv6/conf/default/accept_dad", value="0"),
        *(item for number, ns in enumerate(PODS, start=1) for item in pod(ns, number)),
        service(4, PODS[OLD][0]),
        service(6, PODS[OLD][1]),
    ]
    made = Applier()
    made.apply([Operation(verb="add", new=item) for item in objects])
    yield made
    made.close()


def bound(stack: ExitStack, ns: str, family: int, port: int = 0) -> socket.socket:
    with inside(netns_path(ns)):
        opened = socket.socket(socket.AF_INET if family == 4 else socket.AF_INET6, socket.SOCK_DGRAM)
    stack.enter_context(opened)
    opened.settimeout(1)
    opened.bind(("", port))
    return opened


@pytest.mark.parametrize("family", [4, 6])
def test_a_flow_keeps_its_endpoint_until_its_entry_is_deleted(applier: Applier, family: int) -> None:
    with ExitStack() as stack:
        old, new = bound(stack, OLD, family, 8053), bound(stack, NEW, family, 8053)
        client = bound(stack, CLIENT, family)
        client.sendto(b"first", SERVICE[family])
        assert old.recv(100) == b"first"
        target = PODS[NEW][family == 6]
        applier.apply(
            [Operation(verb="replace", old=service(family, PODS[OLD][family == 6]), new=service(family, target))]
        )
        client.sendto(b"still", SERVICE[family])
        assert old.recv(100) == b"still"  # the rules are new, the flow is not
        (entry,) = [found for found in udp_entries(NODE) if (found.target, found.target_port) == SERVICE[family]]
        assert entry == Entry(
            PODS[CLIENT][family == 6], client.getsockname()[1], *SERVICE[family], PODS[OLD][family == 6], 8053
        )

        assert forget(NODE, [entry]) == 1

        client.sendto(b"moved", SERVICE[family])
        assert new.recv(100) == b"moved"
        assert forget(NODE, [entry._replace(source_port=1)]) == 0


def counted(ns: str) -> int:
    with inside(netns_path(ns)):
        return int(Path("/proc/thread-self/net/stat/nf_conntrack").read_text().split("\n")[1].split()[0], 16)


def test_a_table_is_filled_to_the_kernels_limit_and_emptied_of_that_alone(applier: Applier) -> None:
    most = int(conntrack_table.LIMIT.read_text())
    with ExitStack() as stack:
        client = bound(stack, CLIENT, 4)
        bound(stack, OLD, 4, 8053)
        client.sendto(b"x", SERVICE[4])
        assert udp_entries(NODE)

        made = conntrack_table.fill(NODE)

        assert most - 16 <= made <= most
        assert counted(NODE) == most
        with inside(netns_path(NODE)):
            own = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        with pytest.raises(PermissionError):
            own.sendto(b"x", (PODS[NEW][0], 9))
        conntrack_table.free(NODE)
        assert counted(NODE) < 16
        assert udp_entries(NODE)
        assert own.sendto(b"x", (PODS[NEW][0], 9)) == 1


@pytest.mark.parametrize("limit", ["0", "1048577"])
def test_a_limit_that_cannot_be_reached_is_refused(limit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conntrack_table, "LIMIT", tmp_path / "max")
    (tmp_path / "max").write_text(limit)
    with pytest.raises(Unsupported, match="cannot be filled"):
        conntrack_table.fill(NODE)
