"""A small site for proxies: a client, a stranger, a node and two backends, each on a cable of its own to the node.

::

    client 192.168.50.100 ── eth0 ┐        ┌ one ── one 10.244.0.2:8080
                                  node n1 ─┤
    stranger 198.18.0.2 ──── eth1 ┘        └ two ── two 10.244.0.3:8080
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import msgspec

from emulator.cluster.services import EndpointSlice, Service
from emulator.kernel.applier import Applier
from emulator.kernel.netns import netns_path
from emulator.kernel.syscalls import inside
from emulator.plan.diff import Operation, diff
from emulator.plan.model import Address, AnyObject, Namespace, Plan, Route, Sysctl, Veth
from emulator.proxy.model import Proxy, ProxySettings
from tests.golden.service_constructs import SETTINGS, base_cluster, on

NODE = "pod/node"

CLIENT, STRANGER, ONE, TWO = "pod/client", "pod/stranger", "pod/one", "pod/two"
CLIENT_ADDRESS, STRANGER_ADDRESS, NODE_ADDRESS, OTHER_NODE_ADDRESS = (
    "192.168.50.100",
    "198.18.0.2",
    "192.168.50.11",
    "192.168.50.111",
)
GATEWAY = "10.244.0.1"
SERVED = 8080
# Seconds until silence counts as such. On veths an ICMP error may come back while connect(2) still holds the socket,
# which drops it (LockDroppedIcmps); the second SYN, a second later, is then the one that is refused.
PATIENCE = 1.6


def cable(ns: str, far: str, address: str, gateway: str, *, v6: bool = False) -> Iterator[AnyObject]:
    """A namespace on a cable of its own to the node, which is its way to everywhere."""
    bits, everything = (128, "::/0") if v6 else (32, "0.0.0.0/0")
    yield Address(ns=ns, device="eth0", address=f"{address}/{bits}")
    yield Address(ns=NODE, device=far, address=f"{gateway}/{bits}")
    yield Route(ns=NODE, destination=f"{address}/{bits}", device=far, scope="global" if v6 else "link")
    yield Route(ns=ns, destination=f"{gateway}/{bits}", device="eth0", scope="global" if v6 else "link")
    yield Route(ns=ns, destination=everything, via=gateway)


def wired() -> Iterator[AnyObject]:
    for ns in (NODE, CLIENT, STRANGER, ONE, TWO):
        yield Namespace(ns=ns, role="pod", hostname=ns.removeprefix("pod/"))
    for name in ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"):
        yield Sysctl(ns=NODE, name=name, value="1")
    for ns, far in ((CLIENT, "eth0"), (STRANGER, "eth1"), (ONE, "one"), (TWO, "two")):
        yield Veth(ns=ns, name="eth0", mtu=1500, peer_ns=NODE, peer=far)
    yield from cable(CLIENT, "eth0", CLIENT_ADDRESS, NODE_ADDRESS)
    yield from cable(STRANGER, "eth1", STRANGER_ADDRESS, "198.18.0.1")
    yield from cable(ONE, "one", "10.244.0.2", GATEWAY)
    yield from cable(TWO, "two", "10.244.0.3", GATEWAY)
    yield from cable(CLIENT, "eth0", "fd00:192:168:50::100", "fd00:192:168:50::11", v6=True)
    yield from cable(STRANGER, "eth1", "fd00:198:18::2", "fd00:198:18::1", v6=True)
    yield from cable(ONE, "one", "fd00:10:244::2", "fd00:10:244::1", v6=True)
    yield Address(ns=NODE, device="eth0", address=f"{OTHER_NODE_ADDRESS}/32")
    # Without a route to the Services the kernel would say so before any rule is asked.
    yield Route(ns=NODE, destination="0.0.0.0/0", via=STRANGER_ADDRESS)
    yield Route(ns=NODE, destination="::/0", via="fd00:198:18::2")


class Backend:
    """Tells each TCP client and each datagram who answers and which source it saw."""

    def __init__(self, ns: str) -> None:
        self.name = ns.removeprefix("pod/")
        with inside(netns_path(ns)):
            self.tcp = socket.create_server(("::", SERVED), family=socket.AF_INET6, dualstack_ipv6=True)
            self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self.udp.bind(("0.0.0.0", SERVED))
        for target in (self._serve_tcp, self._serve_udp):
            threading.Thread(target=target, daemon=True).start()

    def _serve_tcp(self) -> None:
        while True:
            try:
                connection, peer = self.tcp.accept()
            except OSError:
                return
            with connection:
                connection.sendall(f"{self.name} {peer[0].removeprefix('::ffff:')}".encode())

    def _serve_udp(self) -> None:
        while True:
            try:
                _, peer = self.udp.recvfrom(100)
                self.udp.sendto(f"{self.name} {peer[0]}".encode(), peer)
            except OSError:
                return


class Loads(Protocol):
    """A proxy's module."""

    def load(self, settings: ProxySettings) -> Proxy: ...


class Site:
    """The place with one mode's rules in force."""

    def __init__(self, applier: Applier, mode: Loads) -> None:
        self.applier = applier
        self.mode = mode
        self.plan = Plan(style="none", topology="site", fragments={})

    def serve(self, *services: Service, slices: tuple[EndpointSlice, ...], **settings: Any) -> None:
        """Put the Services' rules in force, in the place of those before."""
        cluster = msgspec.structs.replace(base_cluster(), services=services, slices=slices)
        proxy = self.mode.load(msgspec.structs.replace(SETTINGS, **settings))
        items = tuple(msgspec.structs.replace(item, ns=NODE) for item in proxy.node(cluster, cluster.nodes[0]))
        after = msgspec.structs.replace(self.plan, fragments={"proxy/n1": items})
        self.applier.apply(diff(self.plan, after))
        self.plan = after


@contextmanager
def built(mode: Loads) -> Iterator[Site]:
    """The site, with both backends serving."""
    applier = Applier()
    applier.apply([Operation(verb="add", new=item) for item in wired()])
    served = [Backend(ns) for ns in (ONE, TWO)]
    yield Site(applier, mode)
    for backend in served:
        backend.tcp.close()
        backend.udp.close()
    applier.close()


def ask(ns: str, address: str, port: int = 80, *, udp: bool = False) -> str:
    """Who answered and which source it saw; ``refused``, or ``silence``."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with inside(netns_path(ns)):
        sock = socket.socket(family, socket.SOCK_DGRAM if udp else socket.SOCK_STREAM)
    with sock:
        sock.settimeout(PATIENCE)
        try:
            sock.connect((address, port))
            if udp:
                sock.send(b"who")
            return sock.recv(100).decode()
        except ConnectionRefusedError:
            return "refused"
        except TimeoutError:
            return "silence"


HERE = [on("n1", 2), on("n1", 3)]
