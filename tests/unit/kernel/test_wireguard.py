"""emulator.kernel.wireguard: what devices are told, and how their answers are read."""

from __future__ import annotations

import base64

from pyroute2.netlink.generic.wireguard import wgmsg

from emulator.kernel.wireguard import PeerState, netlink_set, parse_uapi, uapi_set
from emulator.plan.model import Wireguard, WireguardPeer

KEY, PEER_KEY, PSK = (base64.b64encode(bytes([value]) * 32).decode() for value in (1, 2, 3))
DEVICE = Wireguard(ns="node/n1", name="flannel-wg", mtu=1420, port=51820, private_key=KEY)
PEER = WireguardPeer(
    ns="node/n1",
    device="flannel-wg",
    public_key=PEER_KEY,
    endpoint="192.168.50.12:51820",
    allowed_ips=("10.244.2.0/24", "fd00:10:244:2::/64"),
    preshared_key=PSK,
    keepalive=25,
)


def test_the_process_is_told_line_by_line() -> None:
    assert uapi_set(DEVICE, [PEER]).splitlines() == [
        "set=1",
        f"private_key={'01' * 32}",
        "listen_port=51820",
        f"public_key={'02' * 32}",
        f"preshared_key={'03' * 32}",
        "endpoint=192.168.50.12:51820",
        "persistent_keepalive_interval=25",
        "replace_allowed_ips=true",
        "allowed_ip=10.244.2.0/24",
        "allowed_ip=fd00:10:244:2::/64",
        "",
    ]


def test_a_peer_is_removed_by_its_key_and_nothing_else_is_touched() -> None:
    assert uapi_set(DEVICE, [PEER], remove=True).split() == ["set=1", f"public_key={'02' * 32}", "remove=true"]


def test_the_processs_answer_is_read_as_the_plan_writes_it() -> None:
    other = "04" * 32
    state = parse_uapi(
        f"private_key={'01' * 32}\nlisten_port=51820\npublic_key={'02' * 32}\npreshared_key={'03' * 32}\n"
        "protocol_version=1\nendpoint=[fd00::12]:51821\nlast_handshake_time_sec=0\ntx_bytes=5\n"
        "persistent_keepalive_interval=25\nallowed_ip=fd00:10:244:2::/64\nallowed_ip=10.244.2.0/24\n"
        f"public_key={other}\npreshared_key={'00' * 32}\nerrno=0\n\n"
    )
    assert (state.private_key, state.port) == (KEY, 51820)
    assert state.peers[PEER_KEY] == PeerState("[fd00::12]:51821", ("10.244.2.0/24", "fd00:10:244:2::/64"), PSK, 25)
    assert state.peers[base64.b64encode(bytes.fromhex(other)).decode()] == PeerState("", (), "", 0)


def test_the_kernel_is_told_the_same() -> None:
    """Read back by pyroute2, from a netlink header on."""
    body = netlink_set(DEVICE, [PEER])
    header = (len(body) + 16).to_bytes(4, "little") + bytes(12)
    message = wgmsg(header + body)
    message.decode()
    assert message["cmd"] == 1
    assert message.get_attr("WGDEVICE_A_IFNAME") == "flannel-wg"
    assert message.get_attr("WGDEVICE_A_LISTEN_PORT") == 51820
    assert message.get_attr("WGDEVICE_A_PRIVATE_KEY") == KEY.encode()
    (peer,) = message.get_attr("WGDEVICE_A_PEERS")
    endpoint = peer.get_attr("WGPEER_A_ENDPOINT")
    assert (endpoint["addr"], endpoint["port"]) == ("192.168.50.12", 51820)
    assert peer.get_attr("WGPEER_A_FLAGS") == 2  # replace the allowed IPs
    assert peer.get_attr("WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL") == 25
    assert [each["addr"] for each in peer.get_attr("WGPEER_A_ALLOWEDIPS")] == list(PEER.allowed_ips)


def test_the_kernel_removes_a_peer_by_its_flag() -> None:
    body = netlink_set(DEVICE, [PEER], remove=True)
    message = wgmsg((len(body) + 16).to_bytes(4, "little") + bytes(12) + body)
    message.decode()
    assert message.get_attr("WGDEVICE_A_PRIVATE_KEY") is None
    (peer,) = message.get_attr("WGDEVICE_A_PEERS")
    assert peer.get_attr("WGPEER_A_FLAGS") == 1
