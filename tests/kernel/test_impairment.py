"""Links are impaired as asked, or it is said that they are not."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import pytest

from emulator.errors import ApplyError, Unsupported
from emulator.kernel.applier import Applier
from emulator.kernel.impairment import FEATURES, Impairments, plan_impairments
from emulator.kernel.netns import netns_path
from emulator.kernel.syscalls import inside
from emulator.plan.diff import Operation
from emulator.plan.model import Address, AnyObject, Impairment, Namespace, Neighbour, Veth

ALL = Impairment(ns="node/n1", device="eth0", bandwidth=10, delay=20, jitter=5, loss=1)


@dataclass
class Answer:
    usable: bool


def kernel(*features: str) -> Mapping[str, Answer]:
    return {name: Answer(name in features) for name in FEATURES}


# choosing (no kernel)


def test_netem_below_tbf_does_everything_where_both_are_there() -> None:
    ((choice,), missing) = plan_impairments([ALL], kernel(*FEATURES))

    assert choice.back_end == "tbf+netem"
    assert missing == []


def test_without_netem_loss_goes_to_nft_and_delay_is_missing() -> None:
    ((choice,), missing) = plan_impairments([ALL], kernel("tbf", "nft-netdev", "nft-numgen"))

    assert choice.back_end == "tbf+nft"
    assert [str(item) for item in missing] == ["delay 20 ms ± 5 ms on node/n1 eth0 needs CONFIG_NET_SCH_NETEM"]


def test_kernel_with_nothing_misses_each_wish() -> None:
    ((choice,), missing) = plan_impairments([ALL], kernel())

    assert choice.back_end == "none"
    assert [item.what.split()[0] for item in missing] == ["bandwidth", "delay", "loss"]


def test_missing_wish_stops_the_run_with_one_line_and_a_hint() -> None:
    impairments = Impairments(netns_path, probe=lambda _: kernel("tbf"))

    with pytest.raises(Unsupported) as caught:
        impairments.check([ALL])

    assert "\n" not in caught.value.message
    assert "delay 20 ms ± 5 ms on node/n1 eth0 needs CONFIG_NET_SCH_NETEM" in caught.value.message
    assert "--allow-missing" in caught.value.hint


def test_nothing_is_probed_where_nothing_is_impaired() -> None:
    def never(_: Collection[str]) -> Mapping[str, Answer]:
        raise AssertionError("probed")

    Impairments(netns_path, probe=never).check([])


# the real kernel


def lab(wish: Impairment) -> list[AnyObject]:
    return [
        Namespace(ns="node/n1", role="node", hostname="n1"),
        Namespace(ns="node/n2", role="node", hostname="n2"),
        Veth(
            ns="node/n1",
            name="eth0",
            peer_ns="node/n2",
            peer="eth0",
            mtu=1500,
            mac="02:00:00:00:00:01",
            peer_mac="02:00:00:00:00:02",
        ),
        Address(ns="node/n1", device="eth0", address="10.0.0.1/24"),
        Address(ns="node/n2", device="eth0", address="10.0.0.2/24"),
        Neighbour(ns="node/n1", device="eth0", address="10.0.0.2", mac="02:00:00:00:00:02"),
        wish,
    ]


def add(items: list[AnyObject]) -> list[Operation]:
    return [Operation(verb="add", new=item) for item in items]


@pytest.fixture
def applier() -> Iterator[Applier]:
    made = Applier(allow_missing=True)
    yield made
    made.close()


def send(count: int, size: int = 10) -> tuple[int, float]:
    """Datagrams from n1 to n2: how many arrived, and how long they took, in seconds."""
    with inside(netns_path("node/n2")):
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with inside(netns_path("node/n1")):
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    arrived = 0
    with server, client:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        server.bind(("10.0.0.2", 4000))
        server.settimeout(0.5)
        started = last = time.monotonic()
        for _ in range(count):
            client.sendto(bytes(size), ("10.0.0.2", 4000))
        while arrived < count:
            try:
                server.recv(2000)
            except TimeoutError:
                break
            arrived += 1
            last = time.monotonic()
    return arrived, last - started


@pytest.mark.sandbox
@pytest.mark.requires("nft-netdev", "nft-numgen")
def test_lossy_link_loses_its_share(applier: Applier) -> None:
    applier.apply(add(lab(Impairment(ns="node/n1", device="eth0", loss=30))))

    arrived, _ = send(1000)

    assert 600 < arrived < 800  # 700 expected, standard deviation 14.5


@pytest.mark.sandbox
@pytest.mark.requires("tbf")
def test_slow_link_takes_its_time(applier: Applier) -> None:
    applier.apply(add(lab(Impairment(ns="node/n1", device="eth0", bandwidth=2))))

    # 25 frames of 1042 bytes; 15 kB go at once, the other 11 kB at 250 kB/s within the queue's 50 ms
    arrived, elapsed = send(25, 1000)

    assert arrived == 25
    assert elapsed > 0.03


@pytest.mark.sandbox
@pytest.mark.requires("tbf")
def test_removed_impairment_lets_everything_through(applier: Applier) -> None:
    wish = Impairment(ns="node/n1", device="eth0", bandwidth=2, loss=50)
    applier.apply(add(lab(wish)))

    applier.apply([Operation(verb="remove", old=wish)])

    arrived, elapsed = send(100, 1000)
    assert arrived == 100
    assert elapsed < 0.2


@pytest.mark.sandbox
@pytest.mark.requires("tbf")
def test_queue_that_vanished_is_found_on_reading_back(applier: Applier) -> None:
    wish = Impairment(ns="node/n1", device="eth0", bandwidth=2)
    applier.apply(add(lab(wish)))
    assert applier.impairments.differences([wish]) == []

    applier.net.get("n1").cmd("tc qdisc del dev eth0 root")

    (line,) = applier.impairments.differences([wish])
    assert "tbf is not there" in line


@pytest.mark.sandbox
@pytest.mark.requires("tbf")
def test_wish_that_is_let_go_labels_every_output() -> None:
    applier = Applier(allow_missing=True)
    applier.impairments = Impairments(
        applier.devices.netns, allow_missing=True, probe=lambda _: kernel("tbf", "nft-netdev", "nft-numgen")
    )

    applier.apply(add(lab(ALL)))

    assert applier.labels == ("not emulated: delay 20 ms ± 5 ms on node/n1 eth0 needs CONFIG_NET_SCH_NETEM",)
    assert applier.impairments.choices == {"impairment node/n1 eth0": "tbf+nft"}
    applier.close()


@pytest.mark.sandbox
def test_kernel_without_netem_refuses_before_anything_is_built() -> None:
    applier = Applier()
    applier.impairments = Impairments(applier.devices.netns, probe=lambda _: kernel("tbf"))

    with pytest.raises(Unsupported):
        applier.apply(add(lab(ALL)))

    assert applier.net.hosts == []
    applier.close()


@pytest.mark.sandbox
@pytest.mark.requires("netem")
def test_netem_is_read_back_as_it_was_asked_for(applier: Applier) -> None:
    applier.apply(add(lab(ALL)))

    assert applier.impairments.differences([ALL]) == []
    assert applier.labels == ()


@pytest.mark.sandbox
def test_believing_in_netem_where_there_is_none_is_an_error(applier: Applier) -> None:
    tried = subprocess.run(["tc", "qdisc", "add", "dev", "lo", "root", "netem"], capture_output=True, check=False)
    if tried.returncode == 0:
        pytest.skip("this kernel has netem")
    applier.impairments = Impairments(applier.devices.netns, probe=lambda _: kernel(*FEATURES))

    with pytest.raises(ApplyError, match=r"failed to set .* in node/n1: tc: .*unknown"):
        applier.apply(add(lab(ALL)))

    assert applier.net.hosts == []
