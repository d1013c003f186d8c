"""Which rule translated a packet: found if it is certain, not named if it is not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import pytest

from emulator.capture.nat import Ruleset, dropper, translation
from emulator.capture.rule_walk import Culprit, Mark, Seen
from emulator.cluster.model import Cluster, Node, Topology
from emulator.cluster.services import Endpoint, EndpointPort, EndpointSlice, Ingress, Service, ServicePort
from emulator.plan.model import Chain, IpSet, IptablesRules, Jump, NftRules, NftTable, ProxyRules, Rule
from emulator.proxy.model import ProxyMode, ProxySettings
from emulator.proxy.modes import load_proxy

PACKET = Seen(4, "tcp", "10.244.1.2", "203.0.113.9", 4000, 80, "cni0", "eth0")


def rules(*chains: Chain, hook: str = "POSTROUTING", position: Literal["append", "insert"] = "append") -> IptablesRules:
    jump = Jump(hook, Rule(("-j", chains[0].name)), position)
    return IptablesRules(ns="node/n1", family=4, table="nat", owner=chains[0].name, chains=chains, jumps=(jump,))


def source_nat(*tables: IptablesRules, sets: Sequence[IpSet] = (), to: str = "192.0.2.1") -> Culprit | None:
    """Who gave PACKET another source."""
    return translation(Ruleset(tables, sets=sets), PACKET, PACKET.target, PACKET.target_port, to).source


def found(*args: str, sets: tuple[IpSet, ...] = ()) -> bool:
    return source_nat(rules(Chain("OURS", (Rule((*args, "-j", "MASQUERADE")),))), sets=sets) is not None


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
        ("-m mark --mark 0x1", False),  # nobody marked it
        ("-m mark ! --mark 0x1/0x1", True),
        ("-m conntrack --ctstate NEW", True),  # nothing else meets the nat table
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
    culprit = source_nat(table)
    assert culprit is not None
    assert (culprit.chain, culprit.number) == ("OURS", 3)


def test_two_rules_that_may_both_have_done_it_are_not_named() -> None:
    chance = Rule(("-m", "statistic", "--mode", "random", "--probability", "0.5", "-j", "MASQUERADE"))
    assert source_nat(rules(Chain("OURS", (chance, Rule(("-j", "SNAT", "--to-source", "192.0.2.1")))))) is None


def test_a_rule_that_would_have_given_another_source_was_not_it() -> None:
    chance = ("-m", "statistic", "--mode", "random", "--probability", "0.5", "-j", "SNAT", "--to-source")
    table = rules(Chain("OURS", (Rule((*chance, "192.0.2.1")), Rule((*chance, "192.0.2.2")))))

    culprit = source_nat(table, to="192.0.2.2")

    assert culprit is not None
    assert culprit.number == 2


def test_a_mark_is_followed_from_the_rule_that_sets_it_to_the_one_that_wants_it() -> None:
    marks = rules(Chain("MARKS", (Rule(("-s", "10.244.1.2", "-j", "MARK", "--or-mark", "0x4000")),)), hook="PREROUTING")
    wants = rules(Chain("WANTS", (Rule(("-m", "mark", "--mark", "0x4000/0x4000", "-j", "MASQUERADE")),)))

    assert source_nat(marks, wants) is not None
    assert source_nat(wants) is None


def test_bits_that_other_tables_set_are_open() -> None:
    chain = Chain("OTHER", (Rule(("-j", "MARK", "--set-xmark", "0x4000/0x4000")),))
    other = IptablesRules(
        ns="n", family=4, table="mangle", owner="o", chains=(chain,), jumps=(Jump("PREROUTING", Rule(("-j", "OTHER"))),)
    )
    twice = Chain(
        "OURS", (Rule(("-m", "mark", "--mark", "0x4000/0x4000", "-j", "MASQUERADE")), Rule(("-j", "MASQUERADE")))
    )
    assert source_nat(rules(twice), other) is None


def test_a_return_ends_the_chain_and_the_caller_goes_on() -> None:
    first = rules(Chain("FIRST", (Rule(("-j", "RETURN")), Rule(("-j", "MASQUERADE")))))
    second = rules(Chain("SECOND", (Rule(("-j", "INNER")),)), Chain("INNER", (Rule(("-j", "MASQUERADE")),)))
    culprit = source_nat(first, second)
    assert culprit is not None
    assert culprit.chain == "INNER"


def test_what_goes_to_a_chain_does_not_come_back_to_the_rule_behind() -> None:
    table = rules(
        Chain("FIRST", (Rule(("-j", "MIDDLE")),)),
        Chain("MIDDLE", (Rule(("-g", "AWAY")), Rule(("-j", "SNAT", "--to-source", "192.0.2.9")))),
        Chain("AWAY"),
    )
    last = rules(Chain("LAST", (Rule(("-j", "MASQUERADE")),)))
    culprit = source_nat(table, last, to="192.0.2.9")
    assert culprit is not None
    assert culprit.chain == "LAST"


def test_inserted_jumps_come_before_appended_ones() -> None:
    appended = rules(Chain("APPENDED", (Rule(("-j", "MASQUERADE")),)))
    inserted = rules(Chain("INSERTED", (Rule(("-j", "MASQUERADE")),)), position="insert")
    culprit = source_nat(appended, inserted)
    assert culprit is not None
    assert culprit.chain == "INSERTED"


def test_target_translation_is_looked_for_before_routing() -> None:
    to = Rule(("-p", "tcp", "--dport", "80", "-j", "DNAT", "--to-destination", "10.244.9.9:8080"))
    table = rules(Chain("SERVICES", (to,)), hook="PREROUTING")

    right = translation(Ruleset([table]), PACKET, "10.244.9.9", 8080, PACKET.source)
    wrong = translation(Ruleset([table]), PACKET, "10.244.9.8", 8080, PACKET.source)

    assert right.target is not None
    assert right.target.place == "iptables -t nat SERVICES rule 1"
    assert (wrong.target, right.source) == (None, None)


def nft(name: str, *lines: str, family: Literal["ip", "ip6", "inet"] = "inet") -> NftTable:
    return NftTable(ns="node/n1", family=family, name=name, body="\n".join(["chain post {", *lines, "}"]))


def masquerading(*tables: NftTable, owned: Sequence[IptablesRules] = ()) -> NftTable | None:
    ruleset = Ruleset(owned, nft=tables)
    return translation(ruleset, PACKET, PACKET.target, PACKET.target_port, "192.0.2.1").table


def test_the_only_nftables_table_with_source_nat_is_named() -> None:
    masquerades, filters = nft("masq", "    masquerade"), nft("filter", "    drop")
    assert masquerading(filters, masquerades) is masquerades
    assert masquerading(masquerades, owned=[rules(Chain("OURS"))]) is masquerades


def test_no_nftables_table_is_named_where_another_or_iptables_may_have_done_it() -> None:
    table = nft("masq", "    masquerade")
    assert masquerading(table, nft("other", "    snat to 192.0.2.1")) is None
    assert masquerading(table, owned=[rules(Chain("OURS", (Rule(("-j", "MASQUERADE")),)))]) is None
    assert masquerading(nft("masq6", "    masquerade", family="ip6")) is None


# Service proxies


NODE = Node("n1", ("192.168.50.11",), "eth0", 1500)
TOPOLOGY = Topology("t", (), (), ("10.244.0.0/16",), ("10.96.0.0/16",), ("192.168.50.0/24",))
WEB = Service(
    "default",
    "web",
    "LoadBalancer",
    (4,),
    ("10.96.0.20",),
    selector={"app": "web"},
    ports=(ServicePort("http", "TCP", 80, 8080, 30080),),
    affinity=60,
    load_balancer=(Ingress("203.0.113.200"),),
)
OTHER = Service("default", "other", "ClusterIP", (4,), ("10.96.0.21",), ports=(ServicePort("", "TCP", 80, 8080),))
ENDPOINTS = ("10.244.1.3", "10.244.2.3", "10.244.3.3")
SLICES = tuple(
    EndpointSlice(
        "default",
        f"{name}-abcde",
        name,
        4,
        (EndpointPort(port, "TCP", 8080),),
        tuple(Endpoint(address, node="n1") for address in ENDPOINTS),
    )
    for name, port in (("web", "http"), ("other", ""))
)
MODES: tuple[ProxyMode, ...] = ("iptables", "nftables")


def proxy_rules(mode: ProxyMode) -> Ruleset:
    proxy = load_proxy(mode, ProxySettings(pod_cidrs=TOPOLOGY.pod_cidrs, service_cidrs=TOPOLOGY.service_cidrs))
    assert proxy is not None
    made = list(proxy.node(Cluster(TOPOLOGY, (NODE,), (), {}, services=(WEB, OTHER), slices=SLICES), NODE))
    return Ruleset(
        proxies=[item for item in made if isinstance(item, ProxyRules)],
        structured=[item for item in made if isinstance(item, NftRules)],
    )


def to_service(source: str, target: str, port: int) -> Seen:
    local = frozenset({"192.168.50.11", "127.0.0.1"})
    return Seen(4, "tcp", source, target, 4000, port, "cni0", "eth0", local)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_the_rule_of_the_endpoint_that_was_chosen_is_named(mode: ProxyMode, endpoint: str) -> None:
    seen = to_service("10.244.1.2", "10.96.0.20", 80)

    who = translation(proxy_rules(mode), seen, endpoint, 8080, seen.source)

    assert who.target is not None
    assert who.target.chain.startswith("KUBE-SEP-" if mode == "iptables" else "endpoint-")
    assert endpoint in who.target.text
    assert who.source is None


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("source", "target", "port", "masqueraded"),
    [
        ("10.244.1.2", "10.96.0.20", 80, False),  # a pod
        ("10.244.2.3", "10.96.0.20", 80, True),  # the endpoint itself: hairpin
        ("203.0.113.7", "10.96.0.20", 80, True),  # from outside of the pods' network
        ("203.0.113.7", "192.168.50.11", 30080, True),  # by the node port
        ("203.0.113.7", "203.0.113.200", 80, True),  # by the load balancer's address
    ],
)
def test_masquerading_is_explained_by_the_mark_of_the_way_in(
    mode: ProxyMode, source: str, target: str, port: int, masqueraded: bool
) -> None:
    """For traffic that was not marked, no rule can have changed the source."""
    who = translation(proxy_rules(mode), to_service(source, target, port), "10.244.2.3", 8080, "192.168.50.11")

    assert who.target is not None
    assert (who.source is not None) is masqueraded
    if who.source is not None:
        assert who.source.chain in ("KUBE-POSTROUTING", "masquerading")
        assert "masquerade" in who.source.text.lower()


@pytest.mark.parametrize("mode", MODES)
def test_a_service_does_not_explain_what_went_to_another(mode: ProxyMode) -> None:
    seen = to_service("10.244.1.2", "10.96.0.99", 80)
    assert translation(proxy_rules(mode), seen, "10.244.2.3", 8080, seen.source).target is None


# Marks


@pytest.mark.parametrize(
    ("mark", "wanted", "mask", "held"),
    [
        (Mark(0x4000), 0x4000, 0x4000, True),
        (Mark(0), 0x4000, 0x4000, False),
        (Mark(0, known=0xFFFF), 0x10000, 0x10000, None),
        (Mark(0x1, known=0x1), 0x4000, 0x4001, False),
    ],
)
def test_a_mark_is_tested_on_the_bits_that_are_known(mark: Mark, wanted: int, mask: int, held: bool | None) -> None:
    assert mark.tested(wanted, mask) is held


def test_bits_that_are_set_are_known_from_then_on() -> None:
    assert Mark(0, known=0).masked(0xFFFFFFFF & ~0x4000, 0x4000).tested(0x4000, 0x4000) is True


# What drops a packet


def drops(*rules_: str, table: Literal["raw", "filter"] = "filter", sets: tuple[IpSet, ...] = ()) -> str | None:
    """The rule that is named, of a chain that FORWARD (of raw: PREROUTING) jumps to."""
    chain = Chain("OURS", tuple(Rule(tuple(each.split())) for each in rules_))
    jump = Jump("PREROUTING" if table == "raw" else "FORWARD", Rule(("-j", "OURS")))
    owned = IptablesRules(ns="n", family=4, table=table, owner="us", chains=(chain,), jumps=(jump,))
    culprit = dropper(Ruleset([owned], sets=sets), PACKET)
    return culprit.text if culprit is not None else None


def test_a_rule_that_surely_drops_is_named() -> None:
    assert drops("-s 10.9.0.0/16 -j DROP", "-i cni0 -j DROP") == "-i cni0 -j DROP"
    assert drops("-p tcp -j REJECT") == "-p tcp -j REJECT"


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


def test_what_opens_a_connection_is_not_established() -> None:
    chain = Chain(
        "OURS", (Rule(("-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED", "-j", "ACCEPT")), Rule(("-j", "DROP")))
    )
    jump = Jump("FORWARD", Rule(("-j", "OURS")))
    owned = IptablesRules(ns="n", family=4, table="filter", owner="us", chains=(chain,), jumps=(jump,))

    assert dropper(Ruleset([owned]), PACKET) is None
    assert dropper(Ruleset([owned]), PACKET, new=True) is not None


def test_a_rule_that_only_may_match_is_not_named() -> None:
    assert drops("-m limit --limit 1/second -j DROP") is None


def test_what_gives_no_verdict_is_passed_over() -> None:
    assert drops("-j TTL --ttl-inc 1", "-j CONNMARK --restore-mark --mask 0x80", "-j DROP") == "-j DROP"
