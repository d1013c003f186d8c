"""emulator.plan.iptables: transactions for iptables-restore."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulator.errors import CnilabError
from emulator.plan.iptables import quote, remove_text, restore_text
from emulator.plan.model import Chain, IptablesRules, Jump, Rule


def rules(*chains: Chain, jumps: tuple[Jump, ...] = ()) -> IptablesRules:
    return IptablesRules(ns="node/n1", family=4, table="nat", owner="test", chains=chains, jumps=jumps)


TO_A = Jump("POSTROUTING", Rule(("-j", "A")))


def test_a_transaction_declares_and_fills_chains_before_it_jumps_to_them() -> None:
    text = restore_text(rules(Chain("A", (Rule(("-j", "B")),)), Chain("B", (Rule(("-j", "RETURN")),)), jumps=(TO_A,)))
    assert text == "*nat\n:A - [0:0]\n:B - [0:0]\n-A A -j B\n-A B -j RETURN\n-A POSTROUTING -j A\nCOMMIT\n"


def test_inserted_jumps_stand_in_the_order_of_the_plan() -> None:
    jumps = tuple(Jump("FORWARD", Rule(("-j", name)), "insert") for name in ("A", "B"))
    assert restore_text(rules(Chain("A"), Chain("B"), jumps=jumps)).splitlines()[3:5] == [
        "-I FORWARD -j B",
        "-I FORWARD -j A",
    ]


def test_equal_rules_change_nothing() -> None:
    one = rules(Chain("A", (Rule(("-j", "RETURN"), "why"),)), jumps=(TO_A,))
    other = rules(Chain("A", (Rule(("-j", "RETURN"), "another why"),)), jumps=(TO_A,))
    assert restore_text(one, other) == "*nat\nCOMMIT\n"


def test_only_chains_that_differ_are_rewritten() -> None:
    same = Chain("A", (Rule(("-j", "B")),))
    text = restore_text(
        rules(same, Chain("B", (Rule(("-j", "ACCEPT")),))), rules(same, Chain("B", (Rule(("-j", "DROP")),)))
    )
    assert text == "*nat\n:B - [0:0]\n-A B -j ACCEPT\nCOMMIT\n"


def test_an_old_jump_is_deleted_and_an_old_chain_flushed_before_it_is_removed() -> None:
    old = rules(Chain("A", (Rule(("-j", "B")),)), Chain("B"), jumps=(TO_A,))
    new = rules(Chain("C"), jumps=(Jump("POSTROUTING", Rule(("-j", "C"))),))
    assert restore_text(new, old).splitlines() == [
        "*nat",
        ":C - [0:0]",
        ":A - [0:0]",
        ":B - [0:0]",
        "-D POSTROUTING -j A",
        "-A POSTROUTING -j C",
        "-X A",
        "-X B",
        "COMMIT",
    ]


def test_removal_leaves_nothing() -> None:
    text = remove_text(rules(Chain("A", (Rule(("-j", "RETURN")),)), jumps=(TO_A,)))
    assert text == "*nat\n:A - [0:0]\n-D POSTROUTING -j A\n-X A\nCOMMIT\n"


@pytest.mark.parametrize("hostile", ["a\n-A INPUT -j DROP", "a\rb", "a\0b", "a\ud800", "", "x" * 1024])
def test_what_iptables_restore_could_misread_is_refused(hostile: str) -> None:
    with pytest.raises(CnilabError):
        restore_text(rules(Chain("A", (Rule(("-m", "comment", "--comment", hostile)),))))


def test_a_comment_cannot_leave_its_quotes() -> None:
    assert quote('x" -j DROP -m comment --comment "') == '"x\\" -j DROP -m comment --comment \\""'
    assert quote("ends in a backslash \\") == '"ends in a backslash \\\\"'


def read_as_iptables_does(line: str) -> list[str]:
    """add_param_to_argv of iptables/xshared.c: blanks split, double quotes group, a backslash escapes in quotes."""
    words: list[str] = []
    word, quoted, opened, escaped = "", False, False, False
    for character in line + "\n":
        if opened and escaped:
            word, escaped = word + character, False
        elif opened and character == "\\":
            escaped = True
        elif character == '"':
            opened, quoted = not opened, True
        elif not opened and character in " \t\n":
            if word or quoted:
                words.append(word)
            word, quoted = "", False
        else:
            word += character
    return words


@given(
    st.lists(
        st.text(
            st.characters(min_codepoint=32, exclude_characters="\x7f", exclude_categories=["Cs"]),
            min_size=1,
            max_size=60,
        ),
        min_size=1,
    )
)
def test_every_argument_arrives_as_it_was(arguments: list[str]) -> None:
    line = " ".join(quote(argument) for argument in arguments)
    assert "\n" not in line
    assert read_as_iptables_does(line) == arguments
