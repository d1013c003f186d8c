"""The underlay as a Mininet: nodes, routers and hosts outside are its hosts, bridges its switches, veths its links.

It is a true Mininet, ``net.get("n1").cmd("ip addr")`` and ``net.links`` work as ever, but no step waits:

- a shell is started and its prompt awaited when the first command is given, not before (stock Mininet: 110 to
  125 ms per host with a link, one after the other);
- a switch has a shell only once somebody talks to it: it is a bridge in the lab's own network namespace;
- interfaces and links speak netlink. The applier makes all veths of a lab in a few batches and registers them here;
  ``net.addLink`` makes one at once.

``Mininet.init`` would raise limits through host-wide sysctls, and never runs.
"""

from __future__ import annotations

import os
import pty
import select
import signal
import sys
import warnings
import zlib
from collections.abc import Iterable
from ipaddress import ip_interface
from subprocess import Popen
from typing import Any

from emulator.errors import SandboxError
from emulator.kernel.machine import become_machine, pristine_view, processes_of
from emulator.kernel.messages import address, bridge, change_link, delete_link, veth
from emulator.kernel.namespaces import MachineHandle, in_thread, release
from emulator.kernel.netlink import Channel, Request, link_indexes
from emulator.kernel.netns import netns_file
from emulator.plan.model import UNDERLAY, Address, Bridge, Namespace, Veth


def _import_mininet() -> None:
    """Load Mininet with the standard library's distutils where there is one.

    setuptools hooks ``import distutils`` and would load all of itself for one version comparison (120 ms).
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        if sys.version_info < (3, 12):
            for finder in [item for item in sys.meta_path if type(item).__name__ == "DistutilsMetaFinder"]:
                sys.meta_path.remove(finder)
        import mininet.net  # noqa: F401


_import_mininet()

from mininet.link import Intf, Link  # noqa: E402
from mininet.net import Mininet  # noqa: E402
from mininet.node import Host, Node, Switch  # noqa: E402

PROMPT = chr(127)  # Mininet's sentinel
SHELL = ("bash", "--norc", "--noediting", "-is")
DEFAULT_MTU = 1500  # bytes, Ethernet


class LabNode(Host):
    """A machine: a shell in its own network, mount and UTS namespace."""

    isSetup = True  # mnexec is checked by the capability probes; ifconfig is not needed  # noqa: N815

    handle: MachineHandle

    def startShell(self, mnopts: str | None = None) -> None:  # noqa: N802
        """Make the namespaces and start the shell in them, without waiting for its prompt."""
        self.prompted = False
        ns = self.params.get("ns", f"host/{self.name}")
        self.master, self.slave = pty.openpty()

        def birth() -> tuple[MachineHandle, Popen[bytes]]:
            handle = become_machine(ns, self.params.get("hostname", self.name), self.params["view"])
            environment = {**os.environ, "PS1": PROMPT, "HOSTNAME": self.params.get("hostname", self.name)}
            shell = Popen(
                [*SHELL, "mininet:" + self.name],
                stdin=self.slave,
                stdout=self.slave,
                stderr=self.slave,
                env=environment,
                start_new_session=True,
                cwd="/",
            )
            return handle, shell

        try:
            self.handle, self.shell = in_thread(birth)
        except BaseException:
            os.close(self.master)
            os.close(self.slave)
            raise
        self.stdin = os.fdopen(self.master, "r")
        self.stdout = self.stdin
        self.pid = self.shell.pid
        self.pollOut = select.poll()
        self.pollOut.register(self.stdout)
        self.outToNode[self.stdout.fileno()] = self
        self.inToNode[self.stdin.fileno()] = self
        self.execed = False
        self.lastCmd = None
        self.lastPid = None
        self.readbuf = ""
        self.waiting = False

    def sendCmd(self, *args: Any, **kwargs: Any) -> None:  # noqa: N802
        """Await the prompt before the first command."""
        if not self.prompted:
            self.prompted = True
            while not self.read(1024).endswith(PROMPT):
                self.pollOut.poll()
            self.cmd("unset HISTFILE; stty -echo; set +m")
        super().sendCmd(*args, **kwargs)

    def terminate(self) -> None:
        """End the shell and everything else that runs in the machine, and let go of its namespaces."""
        if self.shell is None:
            return
        for pid in processes_of(self.handle):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.outToNode.pop(self.stdout.fileno(), None)
        self.inToNode.pop(self.stdin.fileno(), None)
        self.cleanup()
        self.handle.close()
        release(self.params.get("ns", f"host/{self.name}"))

    def config(self, **_params: Any) -> dict[str, Any]:
        """Nothing: addresses, routes and the loopback come from the plan."""
        return {}


class LabSwitch(Switch):
    """A bridge in the lab's own network namespace, without spanning tree."""

    isSetup = True  # noqa: N815

    def __init__(self, name: str, **params: Any) -> None:
        self._talking = False
        # Not Switch's constructor: it opens a shell to put lo up, and wants digits in the name for the datapath id.
        Node.__init__(self, name, **{**params, "inNamespace": False})
        self.dpid = f"{zlib.crc32(name.encode()):016x}"
        self.opts = ""
        self.listenPort = None
        self.controlIntf = LabIntf("lo", self, port=0)

    def startShell(self, mnopts: str | None = None) -> None:  # noqa: N802
        """Only once somebody talks to the switch."""
        self.pid = os.getpid()
        if self._talking:
            super().startShell(mnopts)

    def cmd(self, *args: Any, **kwargs: Any) -> str | None:
        """Run a command in the lab's own namespace."""
        if self.shell is None:
            self._talking = True
            self.startShell()
        result: str | None = super().cmd(*args, **kwargs)
        return result

    def start(self, controllers: Iterable[Any]) -> None:
        """Make the bridge, unless it is there, and plug in every link that was added before."""
        with Channel() as channel:
            indexes = link_indexes(channel)
            if self.name not in indexes:
                _must(channel, [bridge(Bridge(ns=UNDERLAY, name=self.name, mtu=DEFAULT_MTU), 0)])
                indexes = link_indexes(channel)
            ports = [indexes[name] for name in self.nameToIntf if name in indexes and name != "lo"]
            _must(channel, [change_link(None, port, master=indexes[self.name]) for port in ports])

    def stop(self, deleteIntfs: bool = True) -> None:  # noqa: N803
        """Remove the bridge."""
        with Channel() as channel:
            index = link_indexes(channel).get(self.name)
            if index is not None:
                _must(channel, [delete_link(None, index)])
        super().stop(deleteIntfs=False)

    def terminate(self) -> None:
        """End the shell, if there is one."""
        if self.shell is not None:
            super().terminate()

    def connected(self) -> bool:
        """A bridge needs no controller."""
        return True


class LabIntf(Intf):
    """An interface that is configured by netlink."""

    ip: str | None
    prefixLen: str | None  # noqa: N815

    def _channel(self) -> Channel:
        return Channel(self.node.handle.net if isinstance(self.node, LabNode) else None)

    def config(self, **_params: Any) -> dict[str, Any]:
        """Nothing: the pair is made with its MTU, MACs and state."""
        return {}

    def setIP(self, ipstr: str, prefixLen: int | None = None) -> None:  # noqa: N802, N803
        """Add an address, ``10.0.0.1/24`` or with the length apart."""
        text = ipstr if "/" in ipstr else f"{ipstr}/{prefixLen}"
        with self._channel() as channel:
            wanted = Address(ns="", device=self.name, address=text)
            _must(channel, [address(wanted, link_indexes(channel)[self.name])])
        self.note_address(text)

    def note_address(self, text: str) -> None:
        """Remember the first address, for ``IP()``."""
        if self.ip is None:
            interface = ip_interface(text)
            self.ip, self.prefixLen = str(interface.ip), str(interface.network.prefixlen)

    def setMAC(self, macstr: str) -> None:  # noqa: N802
        """Change the MAC address."""
        with self._channel() as channel:
            _must(channel, [change_link(None, link_indexes(channel)[self.name], mac=macstr)])
        self.mac = macstr

    def isUp(self, setUp: bool = False) -> bool:  # noqa: N802
        """Whether the interface is up, after setting it so if asked."""
        with self._channel() as channel:
            index = link_indexes(channel).get(self.name)
            if index is None:
                return False
            if setUp:
                _must(channel, [change_link(None, index, up=True)])
        return True

    def delete(self) -> None:
        """Remove the interface, and its peer with it. It may be gone already."""
        if self.node is not None and getattr(self.node, "shell", True) is not None:
            with self._channel() as channel:
                index = link_indexes(channel).get(self.name)
                if index is not None:
                    _must(channel, [delete_link(None, index)])
        self.forget()

    def forget(self) -> None:
        """Take the interface off Mininet's books; the device is gone."""
        if self.node is not None:
            self.node.delIntf(self)
        self.link = None


class LabLink(Link):
    """A veth pair. With ``made=True`` the devices exist, and are only entered in Mininet's books."""

    def __init__(self, node1: Any, node2: Any, *, made: bool = False, **params: Any) -> None:
        self._made = made
        params.setdefault("intf", LabIntf)
        super().__init__(node1, node2, fast=True, **params)

    def makeIntfPair(  # noqa: N802
        self,
        intfname1: str,
        intfname2: str,
        addr1: str | None = None,
        addr2: str | None = None,
        node1: Any = None,
        node2: Any = None,
        deleteIntfs: bool = True,  # noqa: N803
    ) -> tuple[str, str]:
        """Both devices in one message, and the far end set up in another."""
        if self._made:
            return intfname1, intfname2
        near = node1.handle.net if isinstance(node1, LabNode) else None
        far = node2.handle.net if isinstance(node2, LabNode) else None
        here = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            with Channel(near) as channel, Channel(far) as other:
                index = max(link_indexes(channel).values()) + 1
                peer_index = max(link_indexes(other).values()) + (2 if near == far else 1)
                request = veth(
                    None,
                    intfname1,
                    index,
                    intfname2,
                    peer_index,
                    here if far is None else far,
                    mtu=DEFAULT_MTU,
                    mac=addr1 or "",
                    peer_mac=addr2 or "",
                )
                _must(channel, [request])
                _must(other, [change_link(None, peer_index, up=True)])
        finally:
            os.close(here)
        return intfname1, intfname2


class LabNet(Mininet):
    """The Mininet of a lab."""

    def __init__(self) -> None:
        Mininet.inited = True  # Mininet.init() writes host-wide sysctls
        self._view = pristine_view()
        super().__init__(
            topo=None, switch=LabSwitch, host=LabNode, controller=None, link=LabLink, intf=LabIntf, build=False
        )
        self.built = True

    def addHost(self, name: str, cls: type[Host] | None = None, **params: Any) -> Host:  # noqa: N802
        """Add a machine; every one starts from the same view of the file system."""
        return super().addHost(name, cls, view=self._view, **params)

    def close(self) -> None:
        """End every machine. The switches and links die with the lab."""
        for node in self.hosts:
            node.terminate()
        os.close(self._view)

    def configHosts(self) -> None:  # noqa: N802
        """Nothing: the plan holds every address."""

    def handle(self, ns: str) -> MachineHandle:
        """The namespaces of a machine, by its name in the plan. Raises KeyError."""
        handle: MachineHandle = self.nameToNode[netns_file(ns)].handle
        return handle

    def add_machine(self, namespace: Namespace) -> LabNode:
        """A node, router or host, with its shell and its loopback up."""
        if netns_file(namespace.ns) in self.nameToNode:
            raise SandboxError(f"two machines are called {netns_file(namespace.ns)}")
        node: LabNode = self.addHost(
            netns_file(namespace.ns), ns=namespace.ns, hostname=namespace.hostname, role=namespace.role
        )
        with Channel(node.handle.net) as channel:
            _must(channel, [change_link(None, 1, up=True)])
        return node

    def remove_machine(self, ns: str) -> None:
        """Pull the plug: kill every process of the machine; its devices and its links vanish."""
        node = self.nameToNode.pop(netns_file(ns))
        self.hosts.remove(node)
        with Channel(node.handle.net) as channel:
            # At once, not when the kernel gets round to it: the names of the far ends may be needed again.
            doomed = [index for name, index in link_indexes(channel).items() if name != "lo"]
            channel.submit([delete_link(None, index) for index in doomed])
        for link in [item for item in self.links if node in (item.intf1.node, item.intf2.node)]:
            self._forget(link)
        node.terminate()

    def add_switch(self, item: Bridge) -> LabSwitch:
        """Enter a bridge that was made."""
        switch: LabSwitch = self.addSwitch(item.name)
        return switch

    def remove_switch(self, name: str) -> None:
        """Strike a bridge that was removed."""
        switch = self.nameToNode.pop(name, None)
        if switch is not None:
            self.switches.remove(switch)
            switch.terminate()

    def add_veth(self, item: Veth, switch_of: dict[str, str]) -> None:
        """Enter a cable that was made. ``switch_of`` names the bridge that a device of the underlay is a port of."""
        ends = [self._end(item.ns, item.name, switch_of), self._end(item.peer_ns, item.peer, switch_of)]
        if None in ends:
            return
        self.addLink(
            ends[0],
            ends[1],
            made=True,
            intfName1=item.name,
            intfName2=item.peer,
            addr1=item.mac or None,
            addr2=item.peer_mac or None,
        )

    def remove_veth(self, item: Veth) -> None:
        """Strike a cable that was removed."""
        for link in list(self.links):
            if {link.intf1.name, link.intf2.name} == {item.name, item.peer} and self._owns(link, item):
                self._forget(link)

    def note_address(self, ns: str, device: str, text: str) -> None:
        """Let ``IP()`` of an interface tell its first address."""
        node = self.nameToNode.get(netns_file(ns))
        intf = node.nameToIntf.get(device) if node is not None else None
        if intf is not None:
            intf.note_address(text)

    def _end(self, ns: str, device: str, switch_of: dict[str, str]) -> Any:
        name = switch_of.get(device, "") if ns == UNDERLAY else netns_file(ns)
        return self.nameToNode.get(name)

    def _owns(self, link: LabLink, item: Veth) -> bool:
        machines = {netns_file(ns) for ns in (item.ns, item.peer_ns) if ns != UNDERLAY}
        return machines <= {link.intf1.node.name, link.intf2.node.name}

    def _forget(self, link: LabLink) -> None:
        self.links.remove(link)
        link.intf1.forget()
        link.intf2.forget()


def _must(channel: Channel, requests: list[Request]) -> None:
    """Submit; raise SandboxError for the first refusal."""
    for refusal in channel.submit(requests):
        raise SandboxError(f"the kernel refused a request of Mininet's: {refusal.reason}")
