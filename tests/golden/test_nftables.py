"""kube-proxy's nftables transactions as golden files: for each kind of Service the first load and a change.

Write them anew with ``UPDATE_GOLDEN=1`` and read the diff. The names and rules of the upstream test
``TestOverallNFTablesRules`` are asserted in tests/unit/proxy/test_nftables.py.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from emulator.plan.model import NftRules
from emulator.plan.nftables import transactions
from emulator.proxy import nftables
from tests.golden.service_constructs import CONSTRUCTS, clusters

FOLDER = Path(__file__).parent / "nftables"


def planned(name: str, node: int = 0) -> tuple[list[NftRules], list[NftRules]]:
    """The tables of one node, before and after the change."""
    before, after = clusters(CONSTRUCTS[name])
    proxy = nftables.load(CONSTRUCTS[name].settings)
    made = []
    for cluster in (before, after):
        items = list(proxy.node(cluster, cluster.nodes[node]))
        assert all(isinstance(item, NftRules) for item in items)
        made.append([item for item in items if isinstance(item, NftRules)])
    return made[0], made[1]


def text_of(name: str) -> str:
    """The lines of Services only: what all tables have in common is in a file of its own."""
    words = []
    for old, new in zip(*planned(name), strict=True):
        family = "IPv4" if new.family == "ip" else "IPv6"
        first = [
            line
            for step in transactions(None, old)
            for line, owner in zip(step.lines, step.owners, strict=True)
            if owner
        ]
        later = [line for step in transactions(old, new) for line in (*step.lines, *step.sweep)]
        if first or later:
            words += [f"# {family}, first load", *first]
            words += ["", f"# {family}, then {CONSTRUCTS[name].changed}", *later, ""]
    return "\n".join(words)


def compare(path: Path, text: str) -> None:
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", CONSTRUCTS)
def test_the_transactions_are_the_golden_ones(name: str) -> None:
    compare(FOLDER / f"{name}.nft", text_of(name))


@pytest.mark.parametrize("name", ["cluster-ip", "node-port-everywhere"])
@pytest.mark.parametrize("family", [0, 1])
def test_what_all_tables_have_in_common(name: str, family: int) -> None:
    (step,) = transactions(None, planned(name)[0][family])
    lines = [line for line, owner in zip(step.lines, step.owners, strict=True) if not owner]

    suffix = "-everywhere" if name.endswith("everywhere") else ""
    compare(FOLDER / f"frame-{('ipv4', 'ipv6')[family]}{suffix}.nft", "\n".join(lines) + "\n")
