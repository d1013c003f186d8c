"""emulator.kernel.messages: what the kernel is asked for, read back with pyroute2's own decoder."""

from __future__ import annotations

from typing import Any

import pytest
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from emulator.kernel import messages
from emulator.plan.model import Ipip


def link(payload: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """Attributes of a link message, and those of its kind."""
    message = ifinfmsg(len(payload).to_bytes(4, "little") + bytes(12) + payload)
    message.decode()
    info = message.get_attr("IFLA_LINKINFO")
    return dict(message["attrs"]), dict(info.get_attr("IFLA_INFO_DATA")["attrs"])


@pytest.mark.parametrize(
    ("device", "local", "remote", "discovery"),
    [
        (Ipip(ns="node/n1", name="tunl0", mtu=1480), None, None, 0),
        (Ipip(ns="node/n1", name="flannel.ipip", mtu=1480, local="10.0.0.1"), "10.0.0.1", None, 0),
        (
            Ipip(ns="node/n1", name="tun-1", mtu=1480, local="10.0.0.1", remote="10.0.0.2", path_mtu_discovery=True),
            "10.0.0.1",
            "10.0.0.2",
            1,
        ),
    ],
)
def test_an_ipip_device_inherits_its_ttl(device: Ipip, local: str | None, remote: str | None, discovery: int) -> None:
    payload = messages.ipip(device, 7).payload
    outer, inner = link(payload)
    assert (outer["IFLA_IFNAME"], outer["IFLA_MTU"]) == (device.name, 1480)
    assert (inner["IFLA_IPIP_TTL"], inner["IFLA_IPIP_PMTUDISC"]) == (0, discovery)
    assert (inner.get("IFLA_IPIP_LOCAL"), inner.get("IFLA_IPIP_REMOTE")) == (local, remote)
