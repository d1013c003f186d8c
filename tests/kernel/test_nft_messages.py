"""Changes told to the kernel by messages of our own leave what they leave when nft tells them."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Sequence

import msgspec
import pytest

from emulator.kernel import nft_messages, nft_rules
from emulator.kernel.namespaces import create, release
from emulator.kernel.netns import netns_path
from emulator.kernel.rulesets import Rulesets
from emulator.kernel.syscalls import inside
from emulator.kernel.underlay import LabNet
from emulator.plan.model import NftRules
from emulator.proxy import nftables
from tests.golden.service_constructs import CONSTRUCTS, Construct, clusters

pytestmark = [pytest.mark.sandbox, pytest.mark.requires("nft-program", "nft-nat", "nft-numgen", "nft-fib")]

OURS, THEIRS = "pod/default/ours", "pod/default/theirs"
# As kube-proxy's: chains of an endpoint and a Service in either family, elements of all kinds of keys
FIRST = """\
add table ip kube-proxy
add chain ip kube-proxy marking
add map ip kube-proxy services { type ipv4_addr . inet_proto . inet_service : verdict ; }
add map ip kube-proxy ports { type inet_proto . inet_service : verdict ; }
add set ip kube-proxy addresses { type ipv4_addr ; }
add chain ip kube-proxy old
add rule ip kube-proxy old ip saddr 10.244.1.9 jump marking
add element ip kube-proxy services { 10.96.0.9 . tcp . 80 : goto old }
add table ip6 kube-proxy
add chain ip6 kube-proxy marking
add map ip6 kube-proxy services { type ipv6_addr . inet_proto . inet_service : verdict ; }
"""
THEN = """\
delete element ip kube-proxy services { 10.96.0.9 . tcp . 80 }
flush chain ip kube-proxy old
add chain ip kube-proxy endpoint-a
add chain ip kube-proxy endpoint-b
add chain ip kube-proxy service
add rule ip kube-proxy endpoint-a ip saddr 10.244.1.2 jump marking
add rule ip kube-proxy endpoint-a meta l4proto tcp dnat to 10.244.1.2:8080
add rule ip kube-proxy endpoint-b ip saddr 10.244.2.2 jump marking
add rule ip kube-proxy endpoint-b meta l4proto udp dnat to 10.244.2.2:53
add rule ip kube-proxy service ip daddr 10.96.0.1 ip saddr != 10.244.0.0/16 jump marking
add rule ip kube-proxy service ip daddr 10.96.0.1 ip saddr != 10.240.0.0/12 jump marking
add rule ip kube-proxy service ip daddr 10.96.0.1 ip saddr != 10.244.3.0/24 jump marking
add rule ip kube-proxy service ip daddr 10.96.0.1 ip saddr != 10.244.7.1/32 jump marking
add rule ip kube-proxy service ip daddr 10.96.0.1 jump marking
add rule ip kube-proxy service jump marking
add rule ip kube-proxy service numgen random mod 2 vmap { 0 : goto endpoint-a, 1 : goto endpoint-b }
add rule ip kube-proxy old numgen random mod 1 vmap { 0 : goto endpoint-a }
add rule ip kube-proxy old goto service
add element ip kube-proxy services { 10.96.0.1 . tcp . 80 : goto service }
add element ip kube-proxy services { 10.96.0.2 . sctp . 81 comment "shop/web:http" : drop }
add element ip kube-proxy ports { udp . 30053 : jump service }
add element ip kube-proxy addresses { 10.96.0.1 }
add chain ip6 kube-proxy endpoint
add chain ip6 kube-proxy service
add rule ip6 kube-proxy endpoint ip6 saddr fd00:10:244::2 jump marking
add rule ip6 kube-proxy endpoint meta l4proto sctp dnat to [fd00:10:244::2]:8080
add rule ip6 kube-proxy service ip6 daddr fd00:10:96::1 ip6 saddr != fd00:10:244::/48 jump marking
add rule ip6 kube-proxy service ip6 daddr fd00:10:96::1 ip6 saddr != fd00:10:240::/44 jump marking
add rule ip6 kube-proxy service numgen random mod 1 vmap { 0 : goto endpoint }
add element ip6 kube-proxy services { fd00:10:96::1 . tcp . 80 : goto service }
"""


def nft(*words: str, text: str | None = None) -> str:
    return subprocess.run(("nft", *words), input=text, text=True, check=True, capture_output=True).stdout


def held() -> tuple[str, list[str]]:
    """All rules as nft prints them, and the code that the kernel runs. Hashes put elements into any order, and rules
    are numbered as they come."""
    listed = re.sub(r"\{([^{}]*)\}", lambda match: str(sorted(match[1].replace("\n", " ").split(", "))), _listing())
    blocks: list[list[str]] = []
    for line in nft("--debug=netlink", "list", "ruleset").splitlines():
        if line.startswith("ip"):
            blocks.append([re.sub(r" \d+$", "", line)])
        elif line.startswith(("  [", "\telement")):
            blocks[-1].append(line)
    return listed, ["\n".join(sorted(block) if "@" in block[0] else block) for block in blocks]


def _listing() -> str:
    return re.sub(r"\s+", " ", nft("-s", "list", "ruleset"))


@pytest.fixture(scope="module", autouse=True)
def namespaces() -> Iterator[None]:
    create([(OURS, ()), (THEIRS, ())], lambda _: None)
    yield
    release(OURS)
    release(THEIRS)


def test_every_line_that_is_known_here_comes_to_what_nft_makes_of_it() -> None:
    with inside(netns_path(THEIRS)):
        nft("-f", "-", text=FIRST)
        nft("-f", "-", text=THEN)
        theirs = held()
        nft("flush", "ruleset")
    with inside(netns_path(OURS)):
        nft("-f", "-", text=FIRST)
        assert nft_messages.commit(THEN.splitlines())
        ours = held()
        assert nft_messages.commit(["flush chain ip kube-proxy old", "delete chain ip kube-proxy old"])
        assert "chain old" not in nft("list", "ruleset")
        nft("flush", "ruleset")
    assert ours == theirs
    assert "goto endpoint-b" in ours[0]


@pytest.mark.parametrize(
    "line",
    [
        "add rule ip kube-proxy old fib saddr type local jump marking",
        'add rule ip kube-proxy old goto marking comment "x"',
        "add rule ip kube-proxy old ip saddr 10.0.0.1/8 drop",
        "add rule ip kube-proxy old ip saddr fd00::1 jump marking",
        "add rule ip kube-proxy old ip saddr 300.0.0.1 jump marking",
        "add rule ip kube-proxy old meta l4proto 6 dnat to 10.0.0.1:80",
        'add chain ip kube-proxy other { comment "x" ; }',
        "add set ip kube-proxy other { type ipv4_addr ; }",
        "delete rule ip kube-proxy old handle 4",
        "list ruleset",
        "add chain ip other x",
        "add rule ip other x jump y",
        "add element ip other nets { 10.244.0.64 }",  # might be a set of intervals
    ],
)
def test_a_line_that_is_not_known_leaves_all_of_it_to_nft(line: str) -> None:
    with inside(netns_path(OURS)):
        nft("-f", "-", text=FIRST)
        before = held()
        assert not nft_messages.commit(["flush chain ip kube-proxy old", line])
        assert held() == before
        nft("flush", "ruleset")


@pytest.mark.parametrize(
    "line",
    [
        "add rule ip kube-proxy old jump nowhere",
        "delete element ip kube-proxy services { 10.96.0.77 . tcp . 80 }",
        "delete chain ip kube-proxy marking",
        "add rule ip kube-proxy nowhere jump marking",
    ],
)
def test_what_the_kernel_refuses_changes_nothing(line: str) -> None:
    with inside(netns_path(OURS)):
        nft("-f", "-", text=FIRST)
        before = held()
        assert not nft_messages.commit(
            ["add chain ip kube-proxy more", "add rule ip kube-proxy more jump marking", line]
        )
        assert held() == before
        nft("flush", "ruleset")


def changed(construct: Construct, ns: str) -> Sequence[tuple[NftRules, NftRules]]:
    proxy = nftables.load(construct.settings)
    before, after = (
        [item for item in proxy.node(cluster, cluster.nodes[0]) if isinstance(item, NftRules)]
        for cluster in clusters(construct)
    )
    here = [[msgspec.structs.replace(item, ns=ns) for item in items] for items in (before, after)]
    return list(zip(*here, strict=True))


def test_every_change_of_a_service_comes_to_what_nft_makes_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    net = LabNet()
    rulesets = Rulesets(net)
    told: list[bool] = []

    def commit(lines: Sequence[str]) -> bool:
        told.append(nft_messages.commit(lines))
        return told[-1]

    for name, construct in CONSTRUCTS.items():
        found = []
        for ns, way in ((OURS, commit), (THEIRS, lambda _lines: False)):
            pairs = changed(construct, ns)
            monkeypatch.setattr(nft_rules, "commit", lambda _lines: False)
            rulesets.load([old for old, _ in pairs], [], lambda _: None)
            monkeypatch.setattr(nft_rules, "commit", way)
            rulesets.load([], pairs, lambda _: None)
            with inside(netns_path(ns)):
                found.append(held())
                nft("flush", "ruleset")
        assert found[0] == found[1], name
    net.close()
    assert told.count(True) >= 3, "changed endpoints need no nft"
