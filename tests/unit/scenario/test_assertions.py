"""A user's assertions: what their lines mean, and what is refused by line."""

from __future__ import annotations

import pytest

from emulator.errors import ScenarioError, UserError
from emulator.scenario.assertions import parse_aim, parse_assertions


def test_line_is_taken_apart() -> None:
    (one,) = parse_assertions("client -> db:5432 deny", "f")
    assert (one.source, one.target, one.protocol, one.port, one.wanted, one.family, one.line) == (
        "client", "db", "tcp", 5432, "deny", 0, 1,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("aim", "meant"),
    [
        ("web:80", ("web", 80, "tcp")),
        ("shop/web:53/udp", ("shop/web", 53, "udp")),
        ("service/shop/web:9999/SCTP", ("service/shop/web", 9999, "sctp")),
        ("web", ("web", 0, "icmp")),
        ("203.0.113.10:443", ("203.0.113.10", 443, "tcp")),
        ("[2001:db8::10]:443", ("2001:db8::10", 443, "tcp")),
        ("[2001:db8::10]", ("2001:db8::10", 0, "icmp")),
    ],
)
def test_target_port_and_protocol(aim: str, meant: tuple[str, int, str]) -> None:
    assert parse_aim(aim) == meant


def test_comments_blank_lines_arrows_and_families() -> None:
    text = "# all of it\n\nclient → web:80 ALLOW ipv6   # really\n"
    (one,) = parse_assertions(text, "f")
    assert (one.line, one.wanted, one.family) == (3, "allow", 6)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("client web:80 allow", "is not FROM -> TO"),
        ("client -> web:80 permit", "'permit' is not one of allow, deny, drop, refuse"),
        ("client -> web:0 allow", "'0' in 'web:0' is not a port"),
        ("client -> web:65536 allow", "is not a port"),
        ("client -> web:80/icmp allow", "'icmp' in 'web:80/icmp' is not one of tcp, udp, sctp"),
        ("client -> 2001:db8::1:80 allow", "IPv6 addresses stand in brackets"),
        ("a=b=c -> web:80 allow", "'a=b=c'"),
        ("shop/app=-x -> web:80 allow", "'shop/app=-x'"),
        ("\x1b[31m -> web:80 allow", "is no name"),
        ("client -> web:٨٠ allow", "is not a port"),
    ],
)
def test_bad_line_is_refused_with_its_number(line: str, reason: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        parse_assertions(f"client -> web:80 allow\n{line}\n", "pol.txt")
    (problem,) = caught.value.problems
    assert (problem.source, problem.path) == ("pol.txt", "line 2")
    assert reason in problem.reason


def test_every_bad_line_is_told_at_once() -> None:
    with pytest.raises(ScenarioError) as caught:
        parse_assertions("one\ntwo\n", "f")
    assert [problem.path for problem in caught.value.problems] == ["line 1", "line 2"]


def test_file_without_assertions_is_refused() -> None:
    with pytest.raises(ScenarioError, match="no assertion"):
        parse_assertions("# nothing\n", "f")


def test_bad_aim_is_a_users_error() -> None:
    with pytest.raises(UserError, match="is not a port"):
        parse_aim("web:http")
