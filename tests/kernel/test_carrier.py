"""A change is complete when its cables carry packets, not when the kernel has been told of them."""

from __future__ import annotations

import subprocess
import threading
import time

import pytest

from emulator.errors import ApplyError
from emulator.kernel import carrier
from emulator.kernel.applier import Applier
from emulator.kernel.netlink import Channel
from emulator.kernel.netns import netns_path
from emulator.plan.diff import Operation
from emulator.plan.model import AnyObject, Bridge, BridgePort, Namespace, Veth

pytestmark = pytest.mark.sandbox


def ip(command: str) -> None:
    subprocess.run(["ip", *command.split()], check=True)


def plugged_but_silent() -> None:
    """near, a port of br0, is up; its far end is not."""
    ip("link add br0 type bridge")
    ip("link set br0 up")
    ip("link add near type veth peer name far")
    ip("link set near master br0 up")


def open_here(_ns: str) -> Channel:
    return Channel()


def test_waits_until_the_far_end_is_up_and_the_port_forwards() -> None:
    plugged_but_silent()
    timer = threading.Timer(0.3, lambda: ip("link set far up"))
    timer.start()
    start = time.monotonic()
    carrier.await_carrier(open_here, {"underlay": {"near": "port"}})
    assert time.monotonic() - start >= 0.3
    with open("/sys/class/net/near/brport/state") as state:
        assert int(state.read()) == carrier.BR_STATE_FORWARDING


def test_names_the_device_that_stays_without_carrier(monkeypatch: pytest.MonkeyPatch) -> None:
    plugged_but_silent()
    monkeypatch.setattr(carrier, "TIMEOUT", 0.1)
    with pytest.raises(ApplyError, match="near in underlay"):
        carrier.await_carrier(open_here, {"underlay": {"near": "cable"}})


def test_port_that_learns_only_is_not_yet_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    plugged_but_silent()
    ip("link set far up")
    carrier.await_carrier(open_here, {"underlay": {"near": "port"}})
    subprocess.run(["bridge", "link", "set", "dev", "near", "state", "2"], check=True)
    monkeypatch.setattr(carrier, "TIMEOUT", 0.1)
    carrier.await_carrier(open_here, {"underlay": {"near": "cable"}})
    with pytest.raises(ApplyError, match="no carrier"):
        carrier.await_carrier(open_here, {"underlay": {"near": "port"}})


def test_a_cable_between_two_bridges_carries_at_both_ends_when_the_change_is_made() -> None:
    ends = ("pod/one", "pod/two")
    items: list[AnyObject] = [Namespace(ns=ns, role="pod", hostname=ns[4:]) for ns in ends]
    items += [Bridge(ns=ns, name="br0", mtu=1500) for ns in ends]
    items.append(Veth(ns=ends[0], name="cable", mtu=1500, peer_ns=ends[1], peer="cable"))
    items += [BridgePort(ns=ns, device="cable", bridge="br0") for ns in ends]
    applier = Applier()
    for _ in range(3):  # the kernel looks once a second by itself, so a second cable would have to wait for that
        applier.apply([Operation(verb="add", new=item) for item in items])
        ready = []
        for ns in ends:
            with Channel(netns_path(ns)) as channel:
                ready.append(carrier._carrying(channel, {"cable": "port", "br0": "bridge"}))
        assert ready == [{"cable", "br0"}, {"cable", "br0"}]
        applier.apply([Operation(verb="remove", old=item) for item in reversed(items)])
    applier.close()
