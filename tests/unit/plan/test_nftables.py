"""Tables in parts become transactions: what comes before what, what is left alone, what is refused."""

from __future__ import annotations

import msgspec
import pytest

from emulator.errors import CnilabError
from emulator.plan.diff import diff
from emulator.plan.model import NftChain, NftElement, NftPart, NftRules, NftSet, Plan
from emulator.plan.nftables import Transaction, interrupted, transactions
from emulator.plan.render import as_json, as_text, from_json

FRAME = NftPart(sets=(NftSet("ips", "ipv4_addr", verdicts=True),), chains=(NftChain("start", ("ip daddr vmap @ips",)),))
HOOKS = (NftChain("pre", ("jump start",), hook="type nat hook prerouting priority -100"),)


def part(name: str, address: str = "", verdict: str = "drop", **fields: object) -> NftPart:
    chains = (NftChain(f"to-{name}", (verdict,)),)
    elements = (NftElement("ips", address, f"goto to-{name}"),) if address else ()
    return msgspec.structs.replace(NftPart(chains=chains, elements=elements), **fields)


def table(**parts: NftPart) -> NftRules:
    return NftRules(ns="node/n1", family="ip", name="t", frame=FRAME, hooks=HOOKS, parts=parts)


def steps(old: NftRules | None, new: NftRules | None, at_once: int = 500) -> list[Transaction]:
    return list(transactions(old, new, at_once))


def test_first_load_begins_empty_and_hooks_the_table_last() -> None:
    first, second = steps(None, table(a=part("a", "10.0.0.1"), b=part("b", "10.0.0.2")), at_once=1)

    assert first.lines == (
        "add table ip t",
        "delete table ip t",
        "add table ip t",
        "add map ip t ips { type ipv4_addr : verdict ; }",
        "add chain ip t start",
        "add chain ip t to-a",
        "add rule ip t start ip daddr vmap @ips",
        "add rule ip t to-a drop",
        "add element ip t ips { 10.0.0.1 : goto to-a }",
    )
    assert first.owners == ("", "", "", "", "", "a", "", "a", "a")
    assert second.lines == (
        "add chain ip t to-b",
        "add rule ip t to-b drop",
        "add element ip t ips { 10.0.0.2 : goto to-b }",
        "add chain ip t pre { type nat hook prerouting priority -100 ; }",
        "add rule ip t pre jump start",
    )


def test_a_change_touches_its_part_and_nothing_else() -> None:
    untouched = {f"s{number}": part(f"s{number}", f"10.0.1.{number}") for number in range(50)}
    old = table(a=part("a", "10.0.0.1"), **untouched)
    new = table(a=part("a", "10.0.0.1", verdict="accept"), **untouched)

    (step,) = steps(old, new)

    assert step.lines == ("flush chain ip t to-a", "add rule ip t to-a accept")
    assert step.parts == ("a",)


def test_equal_tables_need_nothing() -> None:
    assert [step.lines for step in steps(table(a=part("a")), table(a=part("a")))] == [()]


def test_what_goes_is_no_longer_referred_to_when_its_chain_is_taken_away() -> None:
    (step,) = steps(table(a=part("a", "10.0.0.1"), b=part("b")), table(b=part("b")))

    assert step.lines == ("delete element ip t ips { 10.0.0.1 }", "flush chain ip t to-a")
    assert step.sweep == ("delete chain ip t to-a",)


def test_an_element_that_moves_keeps_both_its_parts_in_one_transaction() -> None:
    old = table(a=part("a", "10.0.0.1"), b=part("b"), c=part("c", "10.0.0.3"), d=part("d"))
    new = table(a=part("a"), b=part("b", verdict="accept"), c=part("c"), d=part("d", "10.0.0.1"))

    first, *others = steps(old, new, at_once=2)

    assert set(first.parts) == {"a", "d"}
    assert "delete element ip t ips { 10.0.0.1 }" in first.lines
    assert "add element ip t ips { 10.0.0.1 : goto to-d }" in first.lines
    assert [set(each.parts) for each in others] == [{"b", "c"}]


def test_rules_that_refer_to_a_changed_set_are_written_again() -> None:
    def sticky(timeout: int) -> NftPart:
        learnt = NftSet("learnt", "ipv4_addr", flags=("dynamic", "timeout"), timeout=timeout)
        return part("a", sets=(learnt,), chains=(NftChain("to-a", ("update @learnt { ip saddr }",)),))

    (step,) = steps(table(a=sticky(10)), table(a=sticky(20)))

    assert step.lines == (
        "flush chain ip t to-a",
        "delete set ip t learnt",
        "add set ip t learnt { type ipv4_addr ; flags dynamic,timeout ; timeout 20s ; }",
        "add rule ip t to-a update @learnt { ip saddr }",
    )


def test_a_changed_hook_is_made_anew_in_one_transaction() -> None:
    other = (NftChain("pre", ("jump start",), hook="type nat hook prerouting priority -110"),)
    (step,) = steps(table(), msgspec.structs.replace(table(), hooks=other))

    assert step.lines == (
        "flush chain ip t pre",
        "delete chain ip t pre",
        "add chain ip t pre { type nat hook prerouting priority -110 ; }",
        "add rule ip t pre jump start",
    )


def test_another_kind_of_common_set_makes_the_table_anew() -> None:
    other = msgspec.structs.replace(FRAME, sets=(NftSet("ips", "ipv6_addr", verdicts=True),))
    (step,) = steps(table(a=part("a")), msgspec.structs.replace(table(a=part("a")), frame=other))

    assert step.lines[:3] == ("add table ip t", "delete table ip t", "add table ip t")


def test_removal_takes_the_table() -> None:
    assert steps(table(a=part("a")), None)[0].lines == ("add table ip t", "delete table ip t")
    assert steps(None, None) == []


def test_an_interrupted_change_can_be_turned_back() -> None:
    old, new = table(a=part("a"), b=part("b")), table(a=part("a", "10.0.0.1"), c=part("c"))

    now = interrupted(old, new, ["a"])

    assert now.parts == {"a": new.parts["a"], "b": old.parts["b"]}
    assert steps(now, old)[0].lines == ("delete element ip t ips { 10.0.0.1 }",)


@pytest.mark.parametrize(
    "hostile",
    [
        part("a", verdict="drop\ndelete table ip t"),
        part("a", verdict="drop; flush ruleset"),
        part("a", verdict='drop comment "open'),
        part("a", verdict="drop # the rest"),
        part("a", verdict='drop comment "$HOME"'),
        part("a b"),
        part("a\nflush ruleset"),
        part("a", chains=(NftChain("9a"),)),
        part("x" * 256),
        part("a", '10.0.0.1 comment "'),
        part("a", "10.0.0.1 }\nflush ruleset"),
        part("a", elements=(NftElement("ips", "10.0.0.1", "drop", comment='a" ; drop'),)),
        part("a", elements=(NftElement("ips", "10.0.0.1", "drop", comment="line\nbreak"),)),
        part("a", elements=(NftElement("ips", "10.0.0.1", "drop", comment="x" * 129),)),
        part("a", sets=(NftSet("s;", "ipv4_addr"),)),
        part("a", sets=(NftSet("s", "ipv4_addr ; }\nflush ruleset"),)),
        part("a", chains=(NftChain("c", hook="type nat hook prerouting priority 0; }\nflush ruleset"),)),
    ],
)
def test_text_that_nft_could_misread_is_refused(hostile: NftPart) -> None:
    with pytest.raises(CnilabError, match=r"misread|is no name|is no comment"):
        steps(None, table(a=hostile))
    with pytest.raises(CnilabError, match=r"misread|is no name|is no comment"):
        steps(table(), table(a=hostile))


def test_plans_show_and_keep_tables_in_parts() -> None:
    old, new = (
        Plan(style="s", topology="t", fragments={"proxy/n1": (item,)})
        for item in (table(a=part("a", "10.0.0.1")), table(a=part("a", "10.0.0.2")))
    )

    assert from_json(as_json(new)) == new
    assert [step.verb for step in diff(old, new)] == ["replace"]
    text = as_text(new)
    assert "nftables table ip t, 1 Service" in text
    assert "10.0.0.2 : goto to-a" in text
    assert "chain pre { type nat hook prerouting priority -100 }" in text
