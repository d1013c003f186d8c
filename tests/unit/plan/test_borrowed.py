"""Sets are borrowed where the rules that ask them change at the same moment, and nowhere else."""

from __future__ import annotations

from emulator.plan.borrowed import LONGEST_NAME, asking, borrowed_sets
from emulator.plan.iptables import restore_text
from emulator.plan.model import AnyObject, Chain, IpSet, IptablesRules, Rule

LONG = "inet6:KUBE-SRC-ABCDEFGHIJKLMNOP"


def peers(*members: str, name: str = "PEERS", kind: str = "hash:ip") -> IpSet:
    return IpSet(ns="node/n1", name=name, type=kind, family=4, members=members)


def rules(**chains: list[str]) -> IptablesRules:
    """Chains, each of rules in words."""
    made = tuple(Chain(name, tuple(Rule(tuple(text.split())) for text in texts)) for name, texts in chains.items())
    return IptablesRules(ns="node/n1", family=4, table="filter", owner="t", chains=made, jumps=())


def asks(port: int, name: str = "PEERS") -> str:
    return f"-m set --match-set {name} src -p tcp --dport {port} -j ACCEPT"


Work = list[tuple[AnyObject | None, AnyObject | None]]
OLD, NEW = peers("10.0.0.1"), peers("10.0.0.2")


def test_a_set_is_borrowed_while_the_rules_that_ask_it_change() -> None:
    work: Work = [(OLD, NEW), (rules(P=[asks(80)]), rules(P=[asks(443)]))]
    assert borrowed_sets(work) == {"PEERS": peers("10.0.0.2", name="PEERS-lent")}


def test_none_is_borrowed_where_its_rules_stay_or_its_members_do() -> None:
    same, other = rules(P=[asks(80)]), rules(P=[asks(443)])
    assert borrowed_sets([(OLD, NEW)]) == {}
    assert borrowed_sets([(OLD, NEW), (same, rules(P=[asks(80), "-j DROP"], Q=["-j DROP"]))]) == {}
    assert borrowed_sets([(OLD, OLD), (same, other)]) == {}
    assert borrowed_sets([(None, NEW), (same, other)]) == {}
    assert borrowed_sets([(OLD, NEW), (rules(P=[asks(80, "Q")]), rules(P=[asks(443, "Q")]))]) == {}


def test_a_chain_that_comes_or_goes_changes_nothing_of_what_its_sets_mean() -> None:
    assert borrowed_sets([(OLD, NEW), (rules(P=[]), rules(P=[], Q=[asks(443)]))]) == {}
    assert borrowed_sets([(OLD, NEW), (rules(P=[], Q=[asks(443)]), rules(P=[]))]) == {}


def test_a_rule_that_only_goes_counts() -> None:
    assert list(borrowed_sets([(OLD, NEW), (rules(P=[asks(80), "-j DROP"]), rules(P=["-j DROP"]))])) == ["PEERS"]


def test_names_are_no_longer_than_the_kernel_takes_and_not_taken() -> None:
    work: Work = [
        (peers("fd00::1", name=LONG), peers("fd00::2", name=LONG)),
        (rules(P=[asks(80, LONG)]), rules(P=[asks(443, LONG)])),
    ]
    first = borrowed_sets(work)[LONG].name
    second = borrowed_sets(work, {first})[LONG].name
    assert len(first) == len(second) == LONGEST_NAME
    assert len({first, second, LONG}) == 3


def test_long_names_that_differ_at_their_ends_alone_borrow_one_each() -> None:
    names = ["KUBE-LOAD-BALANCER-SOURCE-CIDR", "KUBE-LOAD-BALANCER-SOURCE-IP"]
    work: Work = [(peers("10.0.0.1", name=name), peers("10.0.0.2", name=name)) for name in names]
    work.append((rules(P=[asks(80, name) for name in names]), rules(P=[asks(443, name) for name in names])))
    assert len({item.name for item in borrowed_sets(work).values()}) == 2


def test_only_chains_that_change_ask_the_borrowed_set_and_afterwards_none_does() -> None:
    old = rules(P=[asks(80)], SAME=[asks(22)])
    new = rules(P=["-s PEERS -j DROP", asks(443)], SAME=[asks(22)], FRESH=[asks(53)])
    between = asking(new, old, borrowed_sets([(OLD, NEW), (old, new)]))
    assert between == rules(
        P=["-s PEERS -j DROP", asks(443, "PEERS-lent")], SAME=[asks(22)], FRESH=[asks(53, "PEERS-lent")]
    )
    assert restore_text(new, between) == (
        f"*filter\n:P - [0:0]\n:FRESH - [0:0]\n-A P -s PEERS -j DROP\n-A P {asks(443)}\n-A FRESH {asks(53)}\nCOMMIT\n"
    )
