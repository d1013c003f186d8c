"""The path MTU of masqueraded IPv6: a reply from outside that is larger than what a pod takes is lost once.

No router splits an IPv6 packet (RFC 8200, section 5). The node says so to the sender, by the address that it
masquerades with, and the sender remembers (RFC 8201); what was lost is for its protocol to send again: UDP does not.
"""

from __future__ import annotations

import pytest

from emulator import Lab
from emulator.cni.styles import load_style

pytestmark = pytest.mark.requires(*load_style("flannel").requires)
TOPOLOGY = """
name: outside-ipv6
podCIDRs: ["fd00:10:244::/56"]
serviceCIDRs: ["fd00:10:96::/112"]
pods: 2
switches:
  - {name: s1, cidrs: ["fd00:192:168:50::/64"]}
  - {name: s2, cidrs: ["2001:db8:113::/64"]}
nodes: [{name: n1, switch: s1}, {name: n2, switch: s1}]
routers: [{name: tor}]
hosts: [{name: client, switch: s2}]
links: [{from: tor, to: s1}, {from: tor, to: s2}]
"""
NODE, POD_MTU = "fd00:192:168:50::11", 1430
SIZE = 1440  # bytes: 1,488 with UDP and IPv6: more than pods take, less than the wire does


def test_a_reply_that_no_pod_takes_is_lost_once_and_the_sender_learns_why(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    file = tmp_path_factory.mktemp("topology") / "outside-ipv6.yaml"
    file.write_text(TOPOLOGY, encoding="utf-8")
    with Lab(file, cni="flannel") as lab:
        with lab.capture() as capture:
            first = lab.probe("n1-p1", "client", 80, protocol="udp", size=SIZE, timeout=0.9)
        assert not first.reached
        errors = [
            journey
            for journey in capture.journeys()
            if journey.hops[0].packet.protocol == "icmpv6" and journey.hops[0].packet.icmp_type == 2
        ]
        (error,) = errors
        assert error.hops[0].ns == "node/n1"
        assert error.hops[-1].ns == "host/client"
        assert f"mtu {POD_MTU}" in lab.run("client", "ip", "-6", "route", "get", NODE).stdout
        assert lab.probe("n1-p1", "client", 80, protocol="udp", size=SIZE, timeout=0.9).reached
        # What the sender has learnt holds for all pods of the node: they have its address out there.
        assert lab.probe("n1-p2", "client", 80, protocol="udp", size=SIZE, timeout=0.9).reached


def test_tcp_never_sends_what_a_pod_does_not_take(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Each end says how large segments may be (RFC 9293, 3.7.1), and a pod says so by its own MTU."""
    file = tmp_path_factory.mktemp("topology") / "outside-ipv6.yaml"
    file.write_text(TOPOLOGY, encoding="utf-8")
    with Lab(file, cni="flannel") as lab:
        with lab.capture() as capture:
            answer = lab.probe("n1-p1", "client", 80, size=5000, timeout=0.9)
        assert answer.reached
        assert not [each for each in capture.journeys() if each.hops[0].packet.icmp_type == 2]
        assert "mtu" not in lab.run("client", "ip", "-6", "route", "get", NODE).stdout
