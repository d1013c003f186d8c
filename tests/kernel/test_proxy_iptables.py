"""kube-proxy's iptables rules in a real kernel, by both back ends: loaded, read back as planned, repaired, refused."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from emulator.errors import ApplyError
from emulator.kernel import proxy_tables
from emulator.kernel.namespaces import create, release
from emulator.kernel.netns import netns_path
from emulator.kernel.rules_readback import differences
from emulator.kernel.rulesets import Rulesets
from emulator.kernel.syscalls import inside
from emulator.kernel.underlay import LabNet
from emulator.plan.model import AnyObject, Chain, IptablesRules, Jump, ProxyRules, Rule
from tests.golden.service_constructs import CONSTRUCTS, Construct, backends, on, service
from tests.golden.test_service_rules import ALL, planned

NODE = "pod/node"
BACKENDS = [
    pytest.param("nf_tables", marks=pytest.mark.requires("iptables-nft")),
    pytest.param("legacy", marks=pytest.mark.requires("iptables-legacy")),
]
pytestmark = [pytest.mark.sandbox, pytest.mark.parametrize("backend", BACKENDS)]


def here(items: list[ProxyRules]) -> list[ProxyRules]:
    return [msgspec.structs.replace(item, ns=NODE) for item in items]


def ignore(_: AnyObject) -> None:
    """Nobody keeps books here."""


@pytest.fixture
def rulesets(backend: Any) -> Iterator[Rulesets]:
    net = LabNet()
    create([(NODE, ())], lambda _: None)
    yield Rulesets(net, backend)
    release(NODE)
    net.close()


def tool(backend: str, *words: str, program: str = "iptables") -> str:
    """What iptables of the back end prints in the node."""
    name = f"{program.removesuffix('-save')}-{'nft' if backend == 'nf_tables' else 'legacy'}"
    name += "-save" if program.endswith("-save") else ""
    with inside(netns_path(NODE)):
        done = subprocess.run((name, *words), capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, done.stderr
    return done.stdout


def chain(backend: str, table: str, name: str) -> list[str]:
    lines = tool(backend, "-t", table, "-S", name).splitlines()
    return [line.rsplit(" ", 1)[1] for line in lines if line.startswith("-A")]


def flush(backend: str) -> None:
    """As a firewall does that starts anew: all rules and chains go."""
    for program in ("iptables", "ip6tables"):
        for table in ("filter", "nat", "mangle"):
            for verb in ("-F", "-X"):
                tool(backend, "-t", table, verb, program=program)


@pytest.mark.parametrize("name", ALL)
def test_rules_read_back_as_planned_before_and_after_the_change(name: str, rulesets: Rulesets, backend: str) -> None:
    before, after = map(here, planned(ALL[name]))

    rulesets.load(before, [], ignore)
    assert differences({NODE: before}, rulesets) == []

    rulesets.load([], list(zip(before, after, strict=True)), ignore)
    assert differences({NODE: after}, rulesets) == []

    rulesets.load([], list(zip(after, before, strict=True)), ignore)  # and the way back
    assert differences({NODE: before}, rulesets) == []

    rulesets.remove(before, ignore)
    for program in ("iptables-save", "ip6tables-save"):
        assert "KUBE" not in tool(backend, program=program)


def test_probabilities_are_those_of_three_endpoints(rulesets: Rulesets, backend: str) -> None:
    before, _ = map(here, planned(ALL["three-endpoints"]))
    rulesets.load(before, [], ignore)

    name = next(each for each in before[0].tables["nat"] if each.startswith("KUBE-SVC-"))
    words = tool(backend, "-t", "nat", "-S", name).split()
    found = [float(words[place + 1]) for place, word in enumerate(words) if word == "--probability"]
    assert found == pytest.approx([1 / 3, 1 / 2], abs=1e-9)


def test_a_partial_sync_leaves_counters_of_unchanged_services_and_resets_shared_chains(
    rulesets: Rulesets, backend: str
) -> None:
    other = service("other", cluster_ips=("10.96.0.99",))
    one = CONSTRUCTS["cluster-ip"]
    slices = (backends(other, on("n1", 9)),)
    both = Construct((*one.services, other), one.slices + slices, "", (*one.services, other), one.later_slices + slices)
    before, after = map(here, planned(both))
    rulesets.load(before, [], ignore)
    nat = before[0].tables["nat"]
    kept = next(each for each in nat if each.startswith("KUBE-SVC-") and "ns1/other" in nat[each])
    for name in (kept, "KUBE-MARK-MASQ"):
        tool(backend, "-t", "nat", "-R", name, "1", "-c", "7", "700", *("-j", "MARK", "--or-mark", "0x4000"))

    rulesets.load([], list(zip(before, after, strict=True)), ignore)

    assert "[7:700]" in tool(backend, "-c", program="iptables-save")
    assert "-c 7 700" in tool(backend, "-v", "-t", "nat", "-S", kept)
    assert "-c 7 700" not in tool(backend, "-v", "-t", "nat", "-S", "KUBE-MARK-MASQ")


def test_jumps_stand_below_those_that_a_cni_puts_first_and_above_what_it_appends(
    rulesets: Rulesets, backend: str
) -> None:
    cni = IptablesRules(
        ns=NODE,
        family=4,
        table="filter",
        owner="cni",
        chains=(Chain("cni-FORWARD"), Chain("cni-AFTER")),
        jumps=(
            Jump("FORWARD", Rule(("-j", "cni-FORWARD")), "insert"),
            Jump("FORWARD", Rule(("-j", "cni-AFTER"))),
        ),
    )
    before, _ = map(here, planned(ALL["cluster-ip"]))

    rulesets.load([*before, cni], [], ignore)

    assert chain(backend, "filter", "FORWARD") == [
        "cni-FORWARD",
        "KUBE-PROXY-FIREWALL",
        "KUBE-FORWARD",
        "KUBE-SERVICES",
        "KUBE-EXTERNAL-SERVICES",
        "cni-AFTER",
    ]
    assert chain(backend, "nat", "PREROUTING") == ["KUBE-SERVICES"]
    assert differences({NODE: [cni, *before]}, rulesets) == []


def test_flushed_tables_are_noticed_by_the_canary_and_written_anew(rulesets: Rulesets, backend: str) -> None:
    before, _ = map(here, planned(ALL["node-port"]))
    rulesets.load(before, [], ignore)
    assert rulesets.repair(before) == []

    flush(backend)
    assert differences({NODE: before}, rulesets) != []
    told = rulesets.repair(before)

    assert [line.partition(": written anew: ")[2] for line in told] == [
        "the canary of mangle, filter, nat was gone"
    ] * 2
    assert differences({NODE: before}, rulesets) == []
    assert rulesets.repair(before) == []


def test_one_lost_canary_is_enough_and_jumps_that_stand_are_not_doubled(rulesets: Rulesets, backend: str) -> None:
    before, _ = map(here, planned(ALL["node-port"]))
    rulesets.load(before, [], ignore)
    tool(backend, "-t", "mangle", "-X", "KUBE-PROXY-CANARY")
    tool(backend, "-t", "nat", "-F", "KUBE-SERVICES")
    tool(backend, "-D", "OUTPUT", "2")

    (told,) = rulesets.repair(before)

    assert "the canary of mangle was gone" in told
    assert chain(backend, "filter", "OUTPUT") == ["KUBE-PROXY-FIREWALL", "KUBE-SERVICES", "KUBE-FIREWALL"]
    assert chain(backend, "filter", "INPUT").count("KUBE-NODEPORTS") == 1
    assert differences({NODE: before}, rulesets) == []


def test_a_full_sync_repairs_what_no_canary_tells(rulesets: Rulesets, backend: str) -> None:
    before, _ = map(here, planned(ALL["node-port"]))
    rulesets.load(before, [], ignore)
    tool(backend, "-t", "nat", "-F")  # rules go, chains stay: the canary sings

    assert rulesets.repair(before) == []
    assert len(rulesets.repair(before, always=True)) == 2
    assert differences({NODE: before}, rulesets) == []


def test_a_change_after_somebody_flushed_the_tables_writes_everything(rulesets: Rulesets, backend: str) -> None:
    before, after = map(here, planned(ALL["three-endpoints"]))
    rulesets.load(before, [], ignore)
    flush(backend)

    rulesets.load([], list(zip(before, after, strict=True))[:1], ignore)

    assert differences({NODE: after[:1]}, rulesets) == []


def broken(rules: ProxyRules, name: str, text: str) -> ProxyRules:
    """The rules with a line more in one chain of nat."""
    nat = rules.tables["nat"] | {name: rules.tables["nat"][name] + text}
    return msgspec.structs.replace(rules, tables=rules.tables | {"nat": nat})


FAULTS = {
    "a target that nobody knows": "-j NOWHERE",
    "a match that this kernel lacks": "-m tcp -p tcp -m nfacct --nfacct-name none -j ACCEPT",
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("first", [True, False])
def test_a_service_that_cannot_load_is_named_and_the_rules_before_stay(
    fault: str, first: bool, rulesets: Rulesets, backend: str
) -> None:
    good, bad = service("good", cluster_ips=("10.96.0.40",)), service("bad", external_ips=("192.0.2.1",))
    idle = service("idle", cluster_ips=("10.96.0.39",))  # REJECT in filter, which is committed before nat is refused
    slices = tuple(backends(each, on("n1", 2), on("n2", 2)) for each in (good, bad))
    without = Construct((good,), slices[:1], "", (idle, good, bad), slices)
    before, after = map(here, planned(without))
    nat = after[0].tables["nat"]
    name = next(each for each in nat if each.startswith("KUBE-SEP-") and "ns1/bad" in nat[each])
    after[0] = broken(after[0], name, f"-A {name} {FAULTS[fault]}\n")
    if not first:
        rulesets.load(before, [], ignore)
    there = tool(backend, program="iptables-save")

    changed = [] if first else list(zip(before, after, strict=True))
    with pytest.raises(ApplyError) as caught:
        rulesets.load(after if first else [], changed, ignore)

    assert "Service ns1/bad:p80" in caught.value.message
    assert caught.value.subject == "Service ns1/bad:p80"
    assert FAULTS[fault] in caught.value.message
    if first:
        assert "KUBE" not in tool(backend, program="iptables-save")
    else:
        assert [line for line in there.splitlines() if line.startswith("-A")] == [
            line for line in tool(backend, program="iptables-save").splitlines() if line.startswith("-A")
        ]


def test_a_large_set_is_loaded_and_removed_in_parts(
    rulesets: Rulesets, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proxy_tables, "AT_ONCE", 10)
    made = tuple(
        service(f"web-{number}", cluster_ips=(f"10.96.1.{number}",), external_ips=(f"192.0.2.{number}",))
        for number in range(1, 30)
    )
    slices = tuple(backends(each, on("n1", 2), on("n2", 3)) for each in made)
    before, after = map(here, planned(Construct(made, slices, "", made[:3], slices[:3])))

    rulesets.load(before, [], ignore)
    assert differences({NODE: before}, rulesets) == []
    flush(backend)
    assert rulesets.repair(before)
    assert differences({NODE: before}, rulesets) == []
    rulesets.load([], list(zip(before, after, strict=True)), ignore)
    assert differences({NODE: after}, rulesets) == []
    rulesets.load([], list(zip(after, before, strict=True)), ignore)
    rulesets.remove(before, ignore)
    assert "KUBE" not in tool(backend, program="iptables-save")
