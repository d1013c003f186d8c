"""Health checks: what is asked of whom, what a checker makes of the answers, and what follows for the rules."""

from __future__ import annotations

import json

import pytest

from emulator.balancer.health import CHECKER_CONFIG, checkers, fit, health_notices
from emulator.kernel import health_checker as checker
from emulator.kernel.health_checker import Standing, Target
from emulator.lab.target_health import read_findings
from emulator.plan.model import Daemon, File, Plan
from tests.unit.balancer.test_announcing import CLOUD, planned, pod, rules, service

TARGET = Target("t", "http", "192.0.2.1", 30100, 1.0, 1.0, healthy=2, unhealthy=3)
SHORT = CLOUD.replace("kind: cloud", "kind: cloud, healthCheck: {interval: 0.5, unhealthyThreshold: 4}")


def asked(plan: Plan) -> dict[str, Target]:
    (file,) = (item for item in plan if isinstance(item, File) and item.path == CHECKER_CONFIG)
    return checker.read_targets(file.content)


class TestStanding:
    """What answers in a row do to a state."""

    @staticmethod
    def after(answers: str, state: str = checker.INITIAL) -> str:
        standing = Standing(state)
        for answer in answers:
            standing.hear(TARGET, answer == "+", "")
        return standing.state

    def test_one_good_answer_makes_a_new_target_healthy(self) -> None:
        assert self.after("+") == checker.HEALTHY
        assert self.after("--+") == checker.HEALTHY

    def test_a_new_target_that_fails_is_not_given_up_at_once(self) -> None:
        assert self.after("--") == checker.INITIAL
        assert self.after("---") == checker.UNHEALTHY

    def test_it_takes_so_many_in_a_row_either_way(self) -> None:
        assert self.after("--+--", checker.HEALTHY) == checker.HEALTHY
        assert self.after("--+---", checker.HEALTHY) == checker.UNHEALTHY
        assert self.after("+-+", checker.UNHEALTHY) == checker.UNHEALTHY
        assert self.after("+-++", checker.UNHEALTHY) == checker.HEALTHY

    def test_only_a_change_is_news(self) -> None:
        standing = Standing(checker.HEALTHY)
        assert [standing.hear(TARGET, False, "HTTP 503") for _ in range(4)] == [False, False, True, False]
        assert standing.told == "unhealthy: HTTP 503"


@pytest.mark.parametrize(
    ("answer", "good", "why"),
    [
        (b"HTTP/1.1 200 OK\r\n", True, "HTTP 200"),
        (b"HTTP/1.0 399 \r\nmore", True, "HTTP 399"),
        (b"HTTP/1.1 503 Service Unavailable\r\n", False, "HTTP 503"),
        (b"SSH-2.0-x\r\n", False, "no HTTP answer"),
        (b"HTTP/1.1 abc\r\n", False, "no HTTP answer"),
        (b"", False, "no HTTP answer"),
    ],
)
def test_the_status_line_decides(answer: bytes, good: bool, why: str) -> None:
    assert checker.verdict(answer, TARGET.codes) == (good, why)


def test_the_request_names_path_and_host() -> None:
    head = checker.request(Target("t", "http", "2001:db8::1", 80, 1, 1, 2, 2, path="/healthz")).decode()
    assert head.startswith("GET /healthz HTTP/1.1\r\nHost: [2001:db8::1]:80\r\n")
    assert head.endswith("\r\n\r\n")


@pytest.mark.parametrize("text", ["", "{}", '{"targets": [{"name": "t"}]}'])
def test_a_file_that_is_none_is_refused(text: str) -> None:
    with pytest.raises((ValueError, KeyError, TypeError)):
        checker.read_targets(text)


def test_node_ports_are_asked_by_tcp_and_under_policy_local_by_http_with_the_controllers_defaults() -> None:
    local = service("local", externalTrafficPolicy="Local", healthCheckNodePort=30100)
    web = service(ports=[{"port": 80, "targetPort": 8080, "nodePort": 30080}])
    _, plan = planned(CLOUD, pod("p", "n2"), web, local)
    found = asked(plan)
    assert len(found) == 6
    plain = found["default/web:80/TCP n2 (192.168.50.12:30080)"]
    assert (plain.protocol, plain.port, plain.interval, plain.timeout) == ("tcp", 30080, 10, 10)
    assert (plain.healthy, plain.unhealthy, plain.source) == (3, 3, "192.168.50.1")
    http = found["default/local:80/TCP n2 (192.168.50.12:30100)"]
    assert (http.protocol, http.port, http.path, http.interval, http.timeout) == ("http", 30100, "/healthz", 10, 6)
    assert (http.healthy, http.unhealthy, http.codes) == (2, 2, (200, 399))


def test_the_topology_may_be_in_more_of_a_hurry() -> None:
    _, plan = planned(SHORT, pod("p", "n2"), service())
    one = next(iter(asked(plan).values()))
    assert (one.interval, one.timeout, one.healthy, one.unhealthy) == (0.5, 10, 3, 4)


def test_where_packets_are_passed_through_kube_proxys_own_port_is_asked() -> None:
    written = "{kind: cloud, machine: tor, targets: passthrough, addresses: [198.51.100.0/28]}"
    _, plan = planned(written, pod("p", "n2"), service(allocateLoadBalancerNodePorts=False))
    assert {(each.protocol, each.port, each.path) for each in asked(plan).values()} == {("http", 10256, "/healthz")}


def test_the_rules_follow_what_was_found_and_the_checker_asks_on() -> None:
    web = service(ports=[{"port": 80, "targetPort": 8080, "nodePort": 30080}])
    health = {
        "default/web:80/TCP n1 (192.168.50.11:30080)": "healthy",
        "default/web:80/TCP n2 (192.168.50.12:30080)": "unhealthy: connection refused",
        "default/web:80/TCP n3 (192.168.50.13:30080)": "initial: not asked yet",
    }
    _, plan = planned(CLOUD, pod("p", "n2"), web, health=health)
    assert rules(plan, "listeners") == [
        'ip daddr 203.0.113.200 tcp dport 80 dnat to 192.168.50.11:30080 comment "default/web"'
    ]
    assert len(asked(plan)) == 3


def test_if_none_is_fit_all_are() -> None:
    assert fit({}, [1, 2], ["a", "b"]) == (1, 2)
    assert fit({"a": "unhealthy: HTTP 503", "b": "healthy"}, [1, 2], ["a", "b"]) == (2,)


def test_people_are_told_who_gets_nothing() -> None:
    assert health_notices({"a": "healthy", "b": "unhealthy: HTTP 503", "gone": "unhealthy: x"}, ["a", "b", "c"]) == (
        "the load balancer's target b is unhealthy: HTTP 503",
    )


def test_only_checkers_with_other_targets_than_before_need_waiting_for() -> None:
    _, before = planned(CLOUD, pod("p", "n2"), service("one"))
    _, plan = planned(CLOUD, pod("p", "n2"), service("one"), service("two"))
    assert checkers(before, before) == []
    assert [item.ns for item in checkers(before, None)] == ["router/tor"]
    assert [item.ns for item in checkers(plan, before)] == ["router/tor"]
    _, none = planned(CLOUD, pod("p", "n2"))
    assert not [item for item in none if isinstance(item, Daemon)]


def test_reports_are_read_and_what_is_none_is_not() -> None:
    found = read_findings(json.dumps({"at": 5, "targets": {"a": "healthy"}}))
    assert found is not None
    assert (found.at, found.targets) == (5, {"a": "healthy"})
    assert read_findings("nonsense") is None
