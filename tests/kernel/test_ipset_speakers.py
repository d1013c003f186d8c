"""Sets of machines that were spoken to before: changed without entering the machine, and undone like anything else."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import msgspec
import pytest

from emulator.errors import ApplyError
from emulator.kernel import rulesets
from emulator.kernel.applier import Applier
from emulator.kernel.netns import netns_path
from emulator.kernel.syscalls import inside
from emulator.plan.diff import Operation
from emulator.plan.model import AnyObject, IpSet, Namespace, Veth

pytestmark = [pytest.mark.sandbox, pytest.mark.requires("ipset", "ipset-program")]

MACHINES = {name: Namespace(ns=f"node/{name}", role="node", hostname=name) for name in ("n1", "n2")}
CABLE = Veth(ns="node/n1", name="eth0", peer_ns="node/n2", peer="eth0", mtu=1500)


def members(node: str, *addresses: str) -> IpSet:
    return IpSet(ns=f"node/{node}", name="PEERS", type="hash:ip", family=4, members=addresses)


def adding(*items: AnyObject) -> list[Operation]:
    return [Operation(verb="add", new=item) for item in items]


def changing(*pairs: tuple[AnyObject, AnyObject]) -> list[Operation]:
    return [Operation(verb="replace", old=old, new=new) for old, new in pairs]


def output(node: str, *words: str) -> str:
    with inside(netns_path(f"node/{node}")):
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def applier() -> Iterator[Applier]:
    made = Applier()
    made.apply(adding(*MACHINES.values(), CABLE, members("n1", "10.0.0.1"), members("n2", "10.0.0.1")))
    yield made
    made.close()


def test_sets_come_change_and_go_without_a_tool(applier: Applier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rulesets, "feed", None)  # what would enter the machine and start one
    more = msgspec.structs.replace(members("n1", "10.0.0.5", "10.0.0.6"), name="MORE")
    applier.apply([*adding(more), *changing((members("n1", "10.0.0.1"), members("n1", "10.0.0.2", "10.0.0.3")))])
    there = output("n1", "ipset", "save").splitlines()
    assert sorted(line for line in there if line.startswith("add")) == [
        "add MORE 10.0.0.5", "add MORE 10.0.0.6", "add PEERS 10.0.0.2", "add PEERS 10.0.0.3",
    ]  # fmt: skip
    applier.apply([Operation(verb="remove", old=more)])
    assert output("n1", "ipset", "list", "-n").split() == ["PEERS"]


def test_what_one_machine_would_not_have_is_undone_on_the_others(applier: Applier) -> None:
    before = output("n1", "ipset", "list", "PEERS")
    with pytest.raises(ApplyError, match="is no set name or member"):
        applier.apply(
            changing(
                (members("n1", "10.0.0.1"), members("n1", "10.0.0.2")),
                (members("n2", "10.0.0.1"), members("n2", "10.0.0.2\nflush")),
            )
        )
    assert not applier.broken
    assert output("n1", "ipset", "list", "PEERS") == before
