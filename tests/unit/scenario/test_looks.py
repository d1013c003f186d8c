"""What a scenario reads: sessions and routes held against what it expects of them."""

from __future__ import annotations

import pytest

from emulator.compare.records import Check
from emulator.kernel.bird_control import SessionState
from emulator.kernel.route_table import TableRoute
from emulator.scenario.looks import NO_BIRD, route_checks, session_checks, session_words
from emulator.scenario.model import Bgp, BgpExpect, Routes, RoutesExpect
from emulator.scenario.route_words import fault_of_route, fits

ROUTES = [
    TableRoute("0.0.0.0/0", protocol="static", hops=(("192.168.50.1", "eth0"),)),
    TableRoute("10.244.0.0/26", "blackhole", "bird"),
    TableRoute("10.244.0.64/26", protocol="bird", hops=(("192.168.50.12", "eth0"),)),
    TableRoute("10.244.0.128/26", protocol="bird", hops=(("192.168.50.12", "eth0"), ("192.168.50.13", "eth0"))),
]


def looked_at_routes(**expect: list[str]) -> list[bool]:
    step = Routes(id="r", target="n1", expect=RoutesExpect(**expect))
    return [check.met for check in route_checks(step, "calico:bgp", ROUTES)]


def test_a_route_is_worded_as_ip_route_does() -> None:
    assert [str(route) for route in ROUTES] == [
        "default via 192.168.50.1 dev eth0 proto static",
        "blackhole 10.244.0.0/26 proto bird",
        "10.244.0.64/26 via 192.168.50.12 dev eth0 proto bird",
        "10.244.0.128/26 via 192.168.50.12 dev eth0 via 192.168.50.13 dev eth0 proto bird",
    ]


@pytest.mark.parametrize(
    "wanted",
    [
        "default",
        "default via 192.168.50.1",
        "blackhole 10.244.0.0/26",
        "10.244.0.64/26",
        "10.244.0.64/26 dev eth0",
        "10.244.0.128/26 via 192.168.50.13",
        "10.244.0.128/26 via 192.168.50.12 via 192.168.50.13",
    ],
)
def test_as_many_words_of_a_route_as_matter_are_compared(wanted: str) -> None:
    assert looked_at_routes(present=[wanted]) == [True]
    assert looked_at_routes(absent=[wanted]) == [False]


@pytest.mark.parametrize(
    "wanted",
    ["10.244.0.0/26", "10.244.0.64/26 via 192.168.50.13", "blackhole 10.244.0.64/26", "10.244.0.192/26"],
)
def test_other_routes_are_not_taken_for_it(wanted: str) -> None:
    assert looked_at_routes(present=[wanted]) == [False]
    assert looked_at_routes(absent=[wanted]) == [True]


def test_a_missing_route_is_told_with_what_is_there_instead() -> None:
    step = Routes(id="r", target="n1", expect=RoutesExpect(present=["10.244.0.64/26 via 192.168.50.13"]))
    (check,) = route_checks(step, "calico:bgp", ROUTES)
    assert check.observed == "10.244.0.64/26 via 192.168.50.12 dev eth0 proto bird"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "must be a route"),
        ("10.244.0.0", "needs a prefix length"),
        ("n1-p1", "'n1-p1' is no destination"),
        ("10.244.0.1/26", "'10.244.0.1/26' is no destination"),
        ("10.244.0.0/26 via", "pairs of via, dev, proto"),
        ("10.244.0.0/26 metric 3", "pairs of via, dev, proto"),
        ("blackhole", "must be a route"),
    ],
)
def test_what_is_no_route_is_refused(text: str, reason: str) -> None:
    assert reason in fault_of_route(text)


def test_routes_are_no_routes_of_another_type() -> None:
    assert fault_of_route("blackhole 10.244.0.0/26") == ""
    assert fits("10.244.0.0/26 proto bird", "10.244.0.0/26 via 1.2.3.4 dev eth0 proto bird")
    assert not fits("10.244.0.0/26 proto bird", "blackhole 10.244.0.0/26 proto bird")


def test_each_expectation_of_a_session_is_a_check() -> None:
    expect = BgpExpect(state="Passive", error="Bad BGP identifier", imported=0)
    step = Bgp(id="b", source="n1", target="n2", expect=expect)
    session = SessionState("Mesh_1", "192.168.50.12", "Idle", "Received: Bad BGP identifier")
    assert session_checks(step, "calico:bgp", session, NO_BIRD) == (
        Check("state: Passive", "Idle", False),
        Check("error: Bad BGP identifier", "Received: Bad BGP identifier", True),
        Check("imported: 0", "0", True),
    )
    assert session_checks(step, "calico:bgp", None, NO_BIRD)[0] == Check("state: Passive", NO_BIRD, False)
    assert session_words(session) == "Idle, 0 routes imported, 0 exported, last error: Received: Bad BGP identifier"


def test_expectations_of_other_styles_say_nothing() -> None:
    step = Bgp(id="b", source="n1", target="n2", expect=BgpExpect(state={"kube-router": "Established"}))
    assert session_checks(step, "calico:bgp", None, NO_BIRD) == ()
