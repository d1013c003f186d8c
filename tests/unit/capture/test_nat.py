"""Which rule translated a packet: found if it is certain, not named if it is not."""

from __future__ import annotations

from typing import Literal

import pytest

from emulator.capture.nat import Translated, dropper, masquerading_table, translator
from emulator.plan.model import Chain, IpSet, IptablesRules, Jump, NftTable, Rule

PACKET = Translated(4, "tcp", "10.244.1.2", "203.0.113.9", 4000, 80, "cni0", "eth0")


def rules(*chains: Chain, hook: str = "POSTROUTING", position: Literal["append", "insert"] = "append") -> IptablesRules:
    jump = Jump(hook, Rule(("-j", chains[0].name)), position)
    return IptablesRules(ns="node/n1", family=4, table="nat", owner=chains[0].name, chains=chains, jumps=(jump,))


def found(*args: str, sets: tuple[IpSet, ...] = ()) -> bool:
    table = rules(Chain("OURS", (Rule((*args, "-j", "MASQUERADE")),)))
    return translator("POSTROUTING", PACKET, [table], sets) is not None


@pytest.mark.parametrize(
    ("args", "matches"),
    [
        ("-s 10.244.0.0/16", True),
        ("--source 10.0.0.0/24", False),
        ("! -s 10.244.0.0/16", False),
        ("! -d 224.0.0.0/4", True),
        ("-o eth0", True),
        ("--out-interface eth+", True),
        ("! -o eth0", False),
        ("-p tcp --dport 80", True),
        ("-p tcp -m tcp --dport 1:79", False),
        ("-p udp", False),
        ("-s 10.244.0.0/16 -m comment --comment text -d 203.0.113.0/24", True),
    ],
)
def test_conditions_are_judged_as_iptables_does(args: str, matches: bool) -> None:
    assert found(*args.split()) is matches


@pytest.mark.parametrize(("members", "matches"), [(("10.244.0.0/16",), True), (("10.9.0.0/16",), False)])
def test_sets_are_looked_up(members: tuple[str, ...], matches: bool) -> None:
    pools = IpSet(ns="node/n1", name="pools", type="hash:net", family=4, members=members)
    assert found("-m", "set", "--match-set", "pools", "src", sets=(pools,)) is matches
    assert found("-m", "set", "!", "--match-set", "pools", "src", sets=(pools,)) is not matches


def test_the_first_rule_that_surely_matches_is_named_with_its_number() -> None:
    table = rules(
        Chain(
            "OURS",
            (
                Rule(("-m", "mark", "--mark", "0x4000/0x4000", "-j", "RETURN")),
                Rule(("-s", "10.9.0.0/16", "-j", "MASQUERADE")),
                Rule(("-s", "10.244.0.0/16", "-j", "MASQUERADE")),
                Rule(("-j", "MASQUERADE")),
            ),
        )
    )
    culprit = translator("POSTROUTING", PACKET, [table], [])
    assert culprit is not None
    assert (culprit.chain, culprit.number) == ("OURS", 3)


def test_two_rules_that_may_both_have_done_it_are_not_named() -> None:
    table = rules(
        Chain(
            "OURS",
            (Rule(("-m", "mark", "--mark", "1", "-j", "MASQUERADE")), Rule(("-j", "SNAT", "--to-source", "1.2.3.4"))),
        )
    )
    assert translator("POSTROUTING", PACKET, [table], []) is None


def test_a_return_ends_the_chain_and_the_caller_goes_on() -> None:
    first = rules(Chain("FIRST", (Rule(("-j", "RETURN")), Rule(("-j", "MASQUERADE")))))
    second = rules(Chain("SECOND", (Rule(("-j", "INNER")),)), Chain("INNER", (Rule(("-j", "MASQUERADE")),)))
    culprit = translator("POSTROUTING", PACKET, [first, second], [])
    assert culprit is not None
    assert culprit.chain == "INNER"


def test_inserted_jumps_come_before_appended_ones() -> None:
    appended = rules(Chain("APPENDED", (Rule(("-j", "MASQUERADE")),)))
    inserted = rules(Chain("INSERTED", (Rule(("-j", "MASQUERADE")),)), position="insert")
    culprit = translator("POSTROUTING", PACKET, [appended, inserted], [])
    assert culprit is not None
    assert culprit.chain == "INSERTED"


def test_target_translation_is_looked_for_before_routing() -> None:
    table = rules(
        Chain("SERVICES", (Rule(("-p", "tcp", "--dport", "80", "-j", "DNAT", "--to-destination", "x")),)),
        hook="PREROUTING",
    )
    assert translator("PREROUTING", PACKET, [table], []) is not None
    assert translator("POSTROUTING", PACKET, [table], []) is None


def nft(name: str, *lines: str, family: Literal["ip", "ip6", "inet"] = "inet") -> NftTable:
    return NftTable(ns="node/n1", family=family, name=name, body="\n".join(["chain post {", *lines, "}"]))


def test_the_only_nftables_table_with_source_nat_is_named() -> None:
    masquerades, filters = nft("masq", "    masquerade"), nft("filter", "    drop")
    assert masquerading_table("POSTROUTING", PACKET, [], [filters, masquerades]) is masquerades


def test_no_nftables_table_is_named_where_another_or_iptables_may_have_done_it() -> None:
    table = nft("masq", "    masquerade")
    assert masquerading_table("POSTROUTING", PACKET, [], [table, nft("other", "    snat to 192.0.2.1")]) is None
    assert masquerading_table("POSTROUTING", PACKET, [rules(Chain("OURS"))], [table]) is None
    assert masquerading_table("PREROUTING", PACKET, [], [table]) is None
    assert masquerading_table("POSTROUTING", PACKET, [], [nft("masq6", "    masquerade", family="ip6")]) is None


# What drops a packet


def drops(*rules_: str, table: Literal["raw", "filter"] = "filter", sets: tuple[IpSet, ...] = ()) -> str | None:
    """The rule that is named, of a chain that FORWARD (of raw: PREROUTING) jumps to."""
    chain = Chain("OURS", tuple(Rule(tuple(each.split())) for each in rules_))
    jump = Jump("PREROUTING" if table == "raw" else "FORWARD", Rule(("-j", "OURS")))
    owned = IptablesRules(ns="n", family=4, table=table, owner="us", chains=(chain,), jumps=(jump,))
    culprit = dropper(PACKET, [owned], sets)
    return " ".join(culprit.rule.args) if culprit is not None else None


def test_a_rule_that_surely_drops_is_named() -> None:
    assert drops("-s 10.9.0.0/16 -j DROP", "-i cni0 -j DROP") == "-i cni0 -j DROP"


def test_the_raw_table_comes_first() -> None:
    assert drops("-i cni0 -j DROP", table="raw") == "-i cni0 -j DROP"


def test_an_interfaces_addresses_are_looked_up_in_its_set() -> None:
    own = IpSet(ns="n", name="own", type="hash:net", family=4, members=("10.244.9.0/28",))
    check = "-i cni0 -m set ! --match-set own src -j DROP"
    assert drops(check, sets=(own,)) == check
    mine = IpSet(ns="n", name="own", type="hash:net", family=4, members=("10.244.1.0/28",))
    assert drops(check, sets=(mine,)) is None


@pytest.mark.parametrize(
    "before",
    [
        "-s 10.244.0.0/16 -j ACCEPT",
        "-s 10.244.0.0/16 -j RETURN",
        "-m conntrack --ctstate ESTABLISHED -j ACCEPT",  # nobody knows
    ],
)
def test_what_passes_or_may_pass_before_is_not_said_to_be_dropped(before: str) -> None:
    assert drops(before, "-j DROP") is None


def test_a_rule_that_only_may_match_is_not_named() -> None:
    assert drops("-m mark --mark 0x1 -j DROP") is None


def test_what_gives_no_verdict_is_passed_over() -> None:
    assert drops("-j TTL --ttl-inc 1", "-j CONNMARK --restore-mark --mask 0x80", "-j DROP") == "-j DROP"
