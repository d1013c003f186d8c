"""The underlay is a true Mininet, and its machines are private."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from emulator.errors import ApplyError, SandboxError
from emulator.kernel.namespaces import within
from emulator.kernel.netns import netns_path
from emulator.kernel.node_files import read_file, remove_files, write_files
from emulator.kernel.underlay import LabNet
from emulator.plan.model import AnyObject, File, Namespace

pytestmark = pytest.mark.sandbox


def machine(name: str) -> Namespace:
    return Namespace(ns=f"node/{name}", role="node", hostname=name)


@pytest.fixture
def net() -> Iterator[LabNet]:
    made = LabNet()
    yield made
    made.close()


def nothing(_: AnyObject) -> None:
    """No journal."""


def test_hosts_switches_and_links_work_as_mininets_own(net: LabNet) -> None:
    first, second, switch = net.addHost("a"), net.addHost("b"), net.addSwitch("s1")
    net.addLink(first, switch)
    net.addLink(second, switch)
    net.start()
    first.intf().setIP("10.0.0.1/24")
    second.intf().setIP("10.0.0.2", 24)

    assert "10.0.0.1/24" in first.cmd("ip -4 addr show a-eth0")
    assert first.IP() == "10.0.0.1"
    assert first.intf().isUp()
    assert "s1-eth1" in switch.cmd("bridge link")
    assert first.pexec("ip", "route", "get", "10.0.0.2")[2] == 0
    assert [str(link) for link in net.links] == ["a-eth0<->s1-eth1", "b-eth0<->s1-eth2"]
    second.cmd("ip neigh replace 10.0.0.1 lladdr", first.intf().MAC(), "dev b-eth0")
    assert second.cmd("bash -c 'echo hi > /dev/udp/10.0.0.1/9; echo $?'").strip() == "0"
    net.stop()
    assert "s1" not in os.listdir("/sys/class/net")


def test_shell_answers_although_nobody_waited_for_its_prompt(net: LabNet) -> None:
    node = net.add_machine(machine("n1"))

    assert node.cmd("echo one").split() == ["one"]
    assert node.cmd("hostname").split() == ["n1"]
    out, _ = node.popen("ip", "-br", "link").communicate()
    assert b"lo" in out
    assert os.path.exists(netns_path("node/n1"))


def test_machines_have_their_own_run_and_etc(net: LabNet) -> None:
    first, second = net.add_machine(machine("n1")), net.add_machine(machine("n2"))

    first.cmd("echo mine > /etc/cnilab-test; echo mine > /run/cnilab-test")

    assert "mine" in first.cmd("cat /etc/cnilab-test /run/cnilab-test")
    assert "mine" not in second.cmd("cat /etc/cnilab-test /run/cnilab-test")
    assert not os.path.exists("/etc/cnilab-test")
    assert not os.path.exists("/run/cnilab-test")


def test_removed_machine_takes_its_processes_and_links_with_it(net: LabNet) -> None:
    first, second = net.add_machine(machine("n1")), net.add_machine(machine("n2"))
    net.addLink(first, second)
    with first.popen("sleep", "1000") as sleeper:
        net.remove_machine("node/n1")

        assert sleeper.wait(5) < 0
    assert second.cmd("ip -br link show type veth").strip() == ""
    assert not os.path.exists(netns_path("node/n1"))
    assert net.links == []
    net.add_machine(machine("n1"))  # the name is free


def test_two_machines_of_one_name_are_refused(net: LabNet) -> None:
    net.add_machine(machine("n1"))

    with pytest.raises(SandboxError, match="n1"):
        net.add_machine(Namespace(ns="host/n1", role="host", hostname="n1"))


def test_machine_made_late_does_not_keep_removed_pods_alive(net: LabNet) -> None:
    from emulator.kernel import namespaces

    namespaces.create([("pod/default/a", [])], lambda _: None)
    node = net.add_machine(machine("n1"))

    assert "/run/netns/" not in within(node.handle, lambda: Path("/proc/thread-self/mounts").read_text())


@pytest.mark.slow
def test_fifty_machines_are_there_in_a_few_seconds(net: LabNet) -> None:
    started = time.monotonic()

    for number in range(50):
        net.add_machine(machine(f"n{number}"))

    assert time.monotonic() - started < 5  # 0.25 s on a quiet machine; stock Mininet takes 6


def test_file_is_replaced_at_once_with_its_mode_and_parents(net: LabNet) -> None:
    node = net.add_machine(machine("n1"))
    item = File(ns="node/n1", path="/etc/calico/confd/bird.cfg", content="router id 1;\n", mode=0o640)

    write_files(net, [item], nothing)

    assert read_file(net, "node/n1", item.path) == "router id 1;\n"
    assert node.cmd("stat -c %a /etc/calico/confd/bird.cfg").strip() == "640"
    assert not os.path.exists("/etc/calico")
    remove_files(net, [item], nothing)
    remove_files(net, [item], nothing)
    assert "No such file" in node.cmd("ls /etc/calico/confd/bird.cfg")


@pytest.mark.parametrize("path", ["/usr/bin/x", "/etc/../usr/x", "/etc//x", "etc/x", "/run/", "/etc"])
def test_file_outside_of_the_machine_is_refused(net: LabNet, path: str) -> None:
    net.add_machine(machine("n1"))

    with pytest.raises(ApplyError):
        write_files(net, [File(ns="node/n1", path=path, content="x")], nothing)


def test_link_in_the_way_does_not_lead_a_write_outside(net: LabNet) -> None:
    node = net.add_machine(machine("n1"))
    node.cmd("mkdir /run/real; ln -s /run/real /run/folder; echo kept > /run/target; ln -s /run/target /run/file")

    with pytest.raises(ApplyError, match="folder"):
        write_files(net, [File(ns="node/n1", path="/run/folder/x", content="x")], nothing)
    write_files(net, [File(ns="node/n1", path="/run/file", content="new")], nothing)

    assert read_file(net, "node/n1", "/run/target") == "kept\n"
    assert read_file(net, "node/n1", "/run/file") == "new"
    assert "No such file" in node.cmd("ls /run/real/x")
