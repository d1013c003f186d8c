"""emulator.cni.felix: Felix's rules, proven by Felix's own hashes.

A hash depends on the chain, the rule and all rules before it, so a hash that public dumps of real clusters show is
proof of the whole chain up to there. The dumps: iptables-save output in issues and tutorials on Calico v3.20 to v3.30,
whose marks are those of ``EARLIER``; no other difference to the rules of today is made up for here, but for the RETURN
that ended a profile's chain then.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from emulator.cni import felix
from emulator.cni.felix import iptables_tables
from emulator.plan.model import Chain, IptablesRules
from emulator.policy import felix_rules as rendering
from emulator.policy.felix_endpoints import Endpoint
from emulator.policy.felix_rules import ALLOWED, FelixRule, limited_name, rule_hashes
from emulator.policy.felix_tables import Judging
from emulator.policy.felix_words import ACCEPTS, DROPS, RETURNS, set_mark

ENDPOINTS = (Endpoint("cali1dac8782bdb", ("kns.kube-system", "ksa.kube-system.coredns")),)


@pytest.fixture
def earlier(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The marks of releases up to v3.30: no bit for drop, and so the scratch bits one place lower."""
    monkeypatch.setattr(felix, "FROM_WORKLOAD", 0x40000)
    monkeypatch.setattr(felix, "ALL_MARKS", 0xF0000)
    felix.layers.cache_clear()
    yield
    felix.layers.cache_clear()


def tables(endpoints: tuple[Endpoint, ...] = ENDPOINTS) -> dict[str, IptablesRules]:
    return {item.table: item for item in iptables_tables("node/n1", 4, Judging(endpoints))}


def hashes(rules: IptablesRules, name: str) -> list[str]:
    found: list[Chain] = [item for item in rules.chains if item.name == name]
    return [rule.args[3].removeprefix("cali:") for rule in found[0].rules]


@pytest.mark.parametrize(
    ("table", "name", "real"),
    [
        (
            "filter",
            "cali-FORWARD",
            "vjrMJCRpqwy5oRoX A_sPAO0mcxbT9mOV 8ZoYfO5HKXWbB3pk jdEuaPBe14V2hutn 12bc6HljsMKsmfr- NOSxoaGx8OIstr1z",
        ),
        ("filter", "cali-wl-to-host", "Ee9Sbo10IpVujdIY nSZbcOoG1xPONxb8"),
        (
            "filter",
            "cali-fw-cali1dac8782bdb",
            "ewXlV09BwxlTmEX- 6_-94GUCd3jeMzuW gj5Txhi9uVaB6bDT OPts9jGapGnT2WV8 Usb6boV_eqw3tgpW",
        ),
        ("filter", "cali-pri-kns.kube-system", "J1TyxtHWd0qaBGK-"),
        ("filter", "cali-pri-_u2Tn2rSoAPffvE7JO6", "WqgznqAQ-uYV0oBx"),
        ("nat", "cali-PREROUTING", "r6XmIziWUJsdOK6Z"),
        ("nat", "cali-OUTPUT", "GBTAv2p5CwevEyJm"),
        ("nat", "cali-POSTROUTING", "Z-c7XtVd2Bq7s_hA nYKhEzDlr11Jccal"),
        ("nat", "cali-nat-outgoing", "flqWnvo8yq4ULQLa"),
        (
            "raw",
            "cali-PREROUTING",
            "XFX5xbM8B9qR10JG EWMPb0zVROM-woQp PWuxTAIaFCtsg5Qa fSSbGND7dgyemWU7 ImU0-4Rl2WoOI9Ou lV4V2MPoMBf0hl9T",
        ),
        ("raw", "cali-OUTPUT", "njdnLwYeGqBJyMxW rz86uTUcEZAfFsh7 pN0F5zD0b8yf9W1Z"),
        ("mangle", "cali-PREROUTING", "6BJqBjBC7crtA-7- KX7AGNd6rMcDUai6 wNH7KsA3ILKJBsY9 Cg96MgVuoPm7UMRo"),
    ],
)
@pytest.mark.usefixtures("earlier")
def test_hashes_are_those_of_real_clusters(table: str, name: str, real: str) -> None:
    expected = real.split()
    assert hashes(tables()[table], name)[: len(expected)] == expected


def test_a_profiles_chain_ended_with_a_return_that_is_left_out_today() -> None:
    rules = (
        FelixRule((), set_mark(0x10000), ("Profile kns.kube-system ingress",)),
        FelixRule((ALLOWED,), RETURNS),
    )
    assert rule_hashes("cali-pri-kns.kube-system", rules) == ["J1TyxtHWd0qaBGK-", "QIB6k7eEKdIg73Jp"]
    assert len(next(item for item in tables()["filter"].chains if item.name == "cali-pri-kns.kube-system").rules) == 1


def test_todays_marks_leave_a_bit_to_drop_and_clear_the_others() -> None:
    assert (rendering.ACCEPT, rendering.PASS, rendering.DENY) == (0x10000, 0x20000, 0x40000)
    assert (rendering.SCRATCH_0, rendering.SCRATCH_1) == (0x80000, 0x100000)
    (first,) = [item.rules[0] for item in tables()["raw"].chains if item.name == "cali-PREROUTING"]
    assert first.args[-1] == "0/0x1b0000"


def test_jumps_from_the_kernels_chains_carry_the_real_hashes_too() -> None:
    jumps = {(jump.chain, jump.position): jump.rule.args[3] for jump in tables()["filter"].jumps}
    assert jumps["FORWARD", "insert"] == "cali:wUHhoiAYhphO9Mso"
    assert jumps["INPUT", "insert"] == "cali:Cz_u1IQiXIMmKD4c"
    assert jumps["OUTPUT", "insert"] == "cali:tVnHkvAo15HuiPy0"
    appended = [jump.rule.args[3] for jump in tables()["filter"].jumps if jump.position == "append"]
    assert appended == ["cali:S93hcgKJrXEqnTfs", "cali:mp77cMpurHhyjLrM"]


def test_a_hash_covers_every_rule_before_it() -> None:
    first, second = FelixRule((), ACCEPTS), FelixRule((), DROPS)
    assert rule_hashes("cali-x", (first, second))[1] != rule_hashes("cali-x", (second, second))[1]


def test_a_chain_name_that_is_too_long_becomes_a_hash() -> None:
    assert limited_name("cali-pri-", "kns.default") == "cali-pri-kns.default"
    assert limited_name("cali-pri-", "ksa.kube-system.coredns") == "cali-pri-_u2Tn2rSoAPffvE7JO6"


def test_a_pods_packets_go_from_dispatch_to_its_chain_and_unknown_devices_nowhere() -> None:
    dispatch = next(item for item in tables()["filter"].chains if item.name == "cali-from-wl-dispatch")
    assert dispatch.rules[0].args[-4:] == ("--in-interface", "cali1dac8782bdb", "--goto", "cali-fw-cali1dac8782bdb")
    assert dispatch.rules[-1].args[-1] == "DROP"


def test_devices_that_share_a_letter_share_a_chain() -> None:
    devices = ("cali6945b3c77c1", "cali6f60a778e0b", "cali1dac8782bdb")
    chains = {item.name: item for item in tables(tuple(Endpoint(name, ()) for name in devices))["filter"].chains}
    assert [rule.args[-3:] for rule in chains["cali-from-wl-dispatch"].rules[:2]] == [
        ("cali1dac8782bdb", "--goto", "cali-fw-cali1dac8782bdb"),
        ("cali6+", "--goto", "cali-from-wl-dispatch-6"),
    ]
    assert len(chains["cali-from-wl-dispatch-6"].rules) == 3


def test_every_chain_that_is_jumped_to_exists() -> None:
    for rules in iptables_tables("node/n1", 6, Judging(ENDPOINTS)):
        names = {item.name for item in rules.chains}
        targets = {
            rule.args[index + 1]
            for rule in (*(rule for item in rules.chains for rule in item.rules), *(jump.rule for jump in rules.jumps))
            for index, word in enumerate(rule.args)
            if word in ("--jump", "--goto")
        }
        assert {target for target in targets if target.startswith("cali-")} <= names


def test_a_node_without_pods_drops_what_claims_to_come_from_one() -> None:
    (rule,) = next(item for item in tables(())["filter"].chains if item.name == "cali-from-wl-dispatch").rules
    assert rule.args[-3:] == ("Unknown interface", "--jump", "DROP")
