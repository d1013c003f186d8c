"""emulator.routing.bgp: which routes come of sessions, by RFC 4271 and RFC 4456."""

from __future__ import annotations

from typing import Any

from emulator.routing.bgp import Session, settle

IDS = {"a": "10.0.0.1", "b": "10.0.0.2", "c": "10.0.0.3", "r": "10.0.0.9", "s": "10.0.0.10"}
PREFIX = "10.244.0.0/26"


def session(local: str, remote: str, asn: int = 64512, remote_asn: int = 64512, **more: Any) -> Session:
    return Session(local, remote, IDS[local], IDS[remote], asn, remote_asn, f"to_{remote}", **more)


def both(one: str, other: str, asn: int = 64512, other_asn: int = 64512, **of_one: Any) -> list[Session]:
    return [session(one, other, asn, other_asn, **of_one), session(other, one, other_asn, asn)]


def settled(sessions: list[Session], origin: str = "a", exports: Any = lambda *_: True) -> dict[str, Any]:
    tables = settle(IDS, sessions, {PREFIX: origin}, exports)
    return {name: table[PREFIX] for name, table in tables.items() if PREFIX in table and name != origin}


def test_a_mesh_hears_from_the_origin_itself() -> None:
    found = settled([*both("a", "b"), *both("b", "c"), *both("a", "c")])
    assert {name: path.next_hop for name, path in found.items()} == {"b": "10.0.0.1", "c": "10.0.0.1"}


def test_an_internal_peer_does_not_pass_on_what_another_told_it() -> None:
    assert set(settled([*both("a", "b"), *both("b", "c")])) == {"b"}


def test_a_reflector_passes_on_between_clients_and_keeps_the_next_hop() -> None:
    found = settled([*both("r", "a", client=True, cluster="1.1.1.1"), *both("r", "b", client=True, cluster="1.1.1.1")])
    assert found["b"].next_hop == "10.0.0.1"
    assert (found["b"].originator, found["b"].clusters) == ("10.0.0.1", ("1.1.1.1",))


def test_a_reflector_tells_a_client_what_others_told_it() -> None:
    assert "b" in settled([*both("r", "a", cluster="1.1.1.1"), *both("r", "b", client=True, cluster="1.1.1.1")])
    assert "b" not in settled([*both("r", "a", cluster="1.1.1.1"), *both("r", "b", cluster="1.1.1.1")])


def test_reflectors_of_one_cluster_do_not_feed_each_other() -> None:
    sessions = [
        *both("r", "a", client=True, cluster="1.1.1.1"),
        session("r", "s", cluster="1.1.1.1"),
        session("s", "r", cluster="1.1.1.1"),
    ]
    assert "s" not in settled(sessions)
    other = [*sessions[:3], session("s", "r", cluster="2.2.2.2")]
    assert settled(other)["s"].clusters == ("1.1.1.1",)


def test_an_external_peer_puts_itself_between() -> None:
    found = settled([*both("a", "r", 64513, 64600), *both("r", "b", 64600, 64514)])
    assert (found["b"].next_hop, found["b"].as_path) == ("10.0.0.9", (64600, 64513))


def test_a_prepended_number_stands_behind_the_own_and_makes_the_path_longer() -> None:
    short = [*both("a", "b", 64513, 64514)]
    assert settled([session("a", "b", 64513, 64514, prepend=(65000, 65000)), short[1]])["b"].as_path == (
        64513,
        65000,
        65000,
    )


def test_who_finds_its_own_as_number_refuses() -> None:
    sessions = [*both("a", "r", 64512, 64600), *both("r", "b", 64600, 64512)]
    assert set(settled(sessions)) == {"r"}
    lenient = [*sessions[:3], session("b", "r", 64512, 64600, own_as_allowed=1)]
    assert set(settled(lenient)) == {"r", "b"}


def test_the_shorter_as_path_wins() -> None:
    sessions = [*both("a", "r", 1, 2), *both("r", "b", 2, 3), *both("a", "s", 1, 4), *both("s", "r", 4, 2)]
    assert settled(sessions)["r"].as_path == (1,)


def test_a_third_party_on_the_same_link_stays_the_next_hop() -> None:
    sessions = [
        session("r", "a", 64600, 64513, direct=True),
        session("a", "r", 64513, 64600),
        session("r", "b", 64600, 64514, direct=True),
        session("b", "r", 64514, 64600),
    ]
    assert settled(sessions)["b"].next_hop == "10.0.0.1"


def test_next_hop_self_is_for_what_came_from_outside() -> None:
    sessions = [
        *both("a", "r", 64513, 64600),
        session("r", "b", 64600, 64600, next_hop_self=True, client=True, cluster="1.1.1.1"),
        session("b", "r", 64600, 64600),
    ]
    assert settled(sessions)["b"].next_hop == "10.0.0.9"


def test_ends_that_do_not_match_make_no_session() -> None:
    assert settled([session("a", "b"), session("b", "a", 64512, 64999)]) == {}
    assert settled([session("a", "b", password="x"), session("b", "a", password="y")]) == {}
    assert settled([session("a", "b", passive=True), session("b", "a", passive=True)]) == {}
    assert settled([session("a", "b")]) == {}


def test_what_a_filter_holds_back_is_not_told() -> None:
    sessions = [*both("a", "b"), *both("a", "c")]
    assert settled(sessions, exports=lambda speaker, _: speaker != "a") == {}


def test_within_an_as_no_two_speakers_may_have_one_identifier() -> None:
    """RFC 6286, 2.2: the OPEN is refused. Here a reflector's client has the reflector's own identifier."""
    clients: dict[str, Any] = {"client": True, "cluster": "1.1.1.1"}
    sessions = [*both("r", "a", **clients), *both("r", "b", **clients), *both("r", "c", **clients)]
    same = {**IDS, "b": IDS["r"]}
    tables = settle(same, sessions, {PREFIX: "a"}, lambda *_: True)
    assert {name for name, table in tables.items() if table} == {"a", "r", "c"}
    apart = settle({**IDS, "b": IDS["a"]}, both("a", "b", 64512, 64513), {PREFIX: "a"}, lambda *_: True)
    assert {name for name, table in apart.items() if table} == {"a", "b"}
