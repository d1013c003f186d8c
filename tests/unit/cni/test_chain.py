"""A chain of plugins is run as a container runtime runs it; the plugins here are functions."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from typing import Any

import pytest

from emulator.cni.chain import Answer, Call, Chain, Container
from emulator.cni.netconf import Network
from emulator.errors import PluginError, UserError

CONTAINER = Container(
    "c1", "/run/netns/p", "eth0", (("K8S_POD_NAME", "p"), ("IgnoreUnknown", "1")), {"portMappings": [{"hostPort": 80}]}
)
RESULT = {"cniVersion": "1.0.0", "interfaces": [], "ips": [{"address": "10.1.0.2/24"}]}
Plugins = dict[str, Callable[[Call], Answer]]


def well(call: Call) -> Answer:
    """A plugin that works: it prints the previous result with its own name added."""
    config = json.loads(call.stdin)
    if call.command == "VERSION":
        return said({"cniVersion": "1.0.0", "supportedVersions": ["0.4.0", "1.0.0", "1.1.0"]})
    if call.command == "ADD":
        previous = config.get("prevResult", {**RESULT, "cniVersion": config["cniVersion"]})
        return said({**previous, "interfaces": [*previous["interfaces"], {"name": call.plugin}]})
    return Answer(0, b"")


def said(data: Any, code: int = 0, **more: Any) -> Answer:
    return Answer(code, json.dumps(data).encode(), **more)


class Bench:
    """A chain of the named plugins, and the calls that were made."""

    def __init__(self, *kinds: str, version: str = "1.0.0", plugins: Plugins | None = None, **network: Any) -> None:
        self.calls: list[Call] = []
        self.remarks: list[tuple[str, str, str]] = []
        self._plugins = plugins or {}
        entries = tuple({"type": kind, "capabilities": {"portMappings": kind == "portmap"}} for kind in kinds)
        self.chain = Chain(
            Network("net", version, entries, **network),
            ("/a", "/b"),
            self._execute,
            lambda *remark: self.remarks.append(remark),
        )

    def _execute(self, call: Call) -> Answer:
        self.calls.append(call)
        return self._plugins.get(call.plugin, well)(call)

    def told(self, number: int) -> Any:
        return json.loads(self.calls[number].stdin)

    @property
    def order(self) -> list[str]:
        return [f"{call.command} {call.plugin}" for call in self.calls]


def test_each_plugin_gets_the_result_of_the_one_before() -> None:
    bench = Bench("bridge", "portmap", "tuning")
    raw, result = bench.chain.add(CONTAINER)
    assert bench.order == ["ADD bridge", "ADD portmap", "ADD tuning"]
    assert "prevResult" not in bench.told(0)
    assert [item["name"] for item in bench.told(2)["prevResult"]["interfaces"]] == ["bridge", "portmap"]
    assert [item["name"] for item in raw["interfaces"]] == ["bridge", "portmap", "tuning"]
    assert result.addresses == ("10.1.0.2/24",)


def test_name_and_version_are_the_lists() -> None:
    bench = Bench("bridge")
    bench.chain.add(CONTAINER)
    assert (bench.told(0)["name"], bench.told(0)["cniVersion"]) == ("net", "1.0.0")


def test_the_environment_says_whom_and_where() -> None:
    bench = Bench("bridge")
    bench.chain.add(CONTAINER)
    assert bench.calls[0].environment == {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "c1",
        "CNI_NETNS": "/run/netns/p",
        "CNI_IFNAME": "eth0",
        "CNI_ARGS": "K8S_POD_NAME=p;IgnoreUnknown=1",
        "CNI_PATH": "/a:/b",
    }


def test_runtime_configuration_is_for_those_who_declare_the_capability() -> None:
    bench = Bench("bridge", "portmap")
    bench.chain.add(CONTAINER)
    assert "runtimeConfig" not in bench.told(0)
    assert bench.told(1)["runtimeConfig"] == {"portMappings": [{"hostPort": 80}]}


def test_del_goes_backwards_with_the_cached_result() -> None:
    bench = Bench("bridge", "portmap")
    bench.chain.delete(CONTAINER, RESULT)
    assert bench.order == ["DEL portmap", "DEL bridge"]
    assert [bench.told(number)["prevResult"] for number in (0, 1)] == [RESULT, RESULT]


def test_del_of_old_versions_is_told_no_result() -> None:
    bench = Bench("bridge", version="0.3.1")
    bench.chain.delete(CONTAINER, RESULT)
    assert "prevResult" not in bench.told(0)


def test_del_ends_at_the_first_failure_and_says_who_was_not_called() -> None:
    bench = Bench("bridge", "portmap", "bad", plugins={"bad": lambda _: said({"code": 11, "msg": "later"}, 1)})
    with pytest.raises(PluginError, match=r"code 11, try again later: later .*not called: portmap, bridge\)"):
        bench.chain.delete(CONTAINER, RESULT)
    assert bench.order == ["DEL bad"]


def test_a_failed_add_is_followed_by_del_of_the_whole_list() -> None:
    def bad(call: Call) -> Answer:
        return said({"code": 100, "msg": "no"}, 1) if call.command == "ADD" else Answer(0, b"")

    bench = Bench("bridge", "bad", "tuning", plugins={"bad": bad})
    with pytest.raises(PluginError) as error:
        bench.chain.add(CONTAINER)
    assert bench.order == ["ADD bridge", "ADD bad", "DEL tuning", "DEL bad", "DEL bridge"]
    assert (error.value.plugin, error.value.command) == ("bad", "ADD")


def test_a_failure_of_that_del_is_told_with_the_first() -> None:
    bench = Bench("bad", plugins={"bad": lambda _: Answer(3, b"")})
    with pytest.raises(PluginError) as error:
        bench.chain.add(CONTAINER)
    assert error.value.message.count("ended with status 3") == 2
    assert "and when it was undone" in error.value.message


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Answer(1, b'{"cniVersion": "1.0.0", "code": 4, "msg": "no"}'), "code 4, invalid environment variables"),
        (Answer(1, b'{"code": 100, "msg": "own", "details": "more"}'), "failed with code 100: own; more"),
        (Answer(2, b"", "a\nboom\n"), "ended with status 2, without a CNI error on its output; its last words: boom"),
        (Answer(2, b"", "panic: nil pointer\ngoroutine 1:\n main.go:9\n"), "its last words: panic: nil pointer"),
        (Answer(-signal.SIGSEGV, b""), "was killed by SIGSEGV"),
        (Answer(-9, b"", killed="did not end within 30 s"), "did not end within 30 s and was killed"),
        (Answer(0, b""), "ended well, but printed no result"),
        (Answer(0, b"hello"), "printed what is no JSON: 'hello'"),
        (Answer(0, b"[]"), "printed a result that is wrong: is no JSON object"),
        (Answer(0, b'{"cniVersion": "7.0.0"}'), "is of cniVersion '7.0.0', which does not exist"),
        (Answer(0, b'{"code": 7, "msg": "bad"}'), "printed an error, but ended with status 0"),
        (said({**RESULT, "ips": [{"address": "10.1.0.2"}]}), "ips[0].address is '10.1.0.2': an address with"),
        (said({**RESULT, "ips": [{"address": "10.1.0.2/24", "interface": 3}]}), "ips[0].interface is 3, and there"),
        (said({**RESULT, "routes": [{"dst": "everywhere"}]}), "routes[0].dst is 'everywhere', which is no CIDR"),
    ],
)  # fmt: skip
def test_what_went_wrong_is_in_the_reason(answer: Answer, reason: str) -> None:
    bench = Bench("bad", plugins={"bad": lambda call: answer if call.command == "ADD" else Answer(0, b"")})
    with pytest.raises(PluginError) as error:
        bench.chain.add(CONTAINER)
    assert error.value.message.startswith("plugin bad, ADD: ")
    assert reason in error.value.message


def test_a_result_of_another_version_is_remarked() -> None:
    bench = Bench("old", plugins={"old": lambda _: said({**RESULT, "cniVersion": "0.4.0"})})
    bench.chain.add(CONTAINER)
    assert bench.remarks == [("old", "ADD", "its result is of version 0.4.0, it was asked for 1.0.0")]


def test_results_of_the_first_versions_are_understood() -> None:
    first = {
        "cniVersion": "0.2.0",
        "ip4": {"ip": "10.1.0.2/24", "gateway": "10.1.0.1", "routes": [{"dst": "0.0.0.0/0"}]},
    }
    bench = Bench("old", version="0.2.0", plugins={"old": lambda _: said(first)})
    _, result = bench.chain.add(CONTAINER)
    assert result.addresses == ("10.1.0.2/24",)
    assert [route.destination for route in result.routes] == ["0.0.0.0/0"]


def test_conduct_beside_a_good_answer_is_remarked() -> None:
    bench = Bench("odd", plugins={"odd": lambda _: said(RESULT, remarks=("left sleep behind",))})
    bench.chain.add(CONTAINER)
    assert bench.remarks == [("odd", "ADD", "left sleep behind")]


def test_versions_are_asked_for_once_a_kind() -> None:
    bench = Bench("bridge", "tuning", "tuning")
    bench.chain.require_versions()
    assert bench.order == ["VERSION bridge", "VERSION tuning"]


def test_a_plugin_of_another_version_is_refused() -> None:
    with pytest.raises(PluginError, match=r"speaks CNI 0\.4\.0, 1\.0\.0, 1\.1\.0, and the list is of version 0\.2\.0"):
        Bench("bridge", version="0.2.0").chain.require_versions()


def test_a_plugin_from_before_version_speaks_the_first() -> None:
    def ancient(_: Call) -> Answer:
        return said({"code": 100, "msg": "unknown CNI_COMMAND: VERSION"}, 1)

    Bench("ancient", version="0.1.0", plugins={"ancient": ancient}).chain.require_versions()


def test_check_hears_every_plugin_with_the_cached_result() -> None:
    bench = Bench("bad", "bridge", plugins={"bad": lambda _: said({"code": 100, "msg": "gone"}, 1)})
    (complaint,) = bench.chain.check(CONTAINER, RESULT)
    assert complaint.message == "plugin bad, CHECK: failed with code 100: gone"
    assert bench.order == ["CHECK bad", "CHECK bridge"]
    assert bench.told(1)["prevResult"] == RESULT


def test_check_is_left_out_where_the_list_says_so() -> None:
    bench = Bench("bridge", disable_check=True)
    assert bench.chain.check(CONTAINER, RESULT) == []
    assert bench.calls == []


def test_check_came_with_a_version() -> None:
    with pytest.raises(UserError, match=r"CHECK came with 0\.4\.0"):
        Bench("bridge", version="0.3.1").chain.check(CONTAINER, RESULT)


def test_status_and_gc_are_for_version_1_1() -> None:
    old, new = Bench("bridge"), Bench("bridge", version="1.1.0")
    for bench in (old, new):
        assert bench.chain.status() == []
        assert bench.chain.collect_garbage([("c1", "eth0")]) == []
    assert old.calls == []
    assert new.order == ["STATUS bridge", "GC bridge"]
    assert new.told(1)["cni.dev/valid-attachments"] == [{"containerID": "c1", "ifname": "eth0"}]
    assert new.calls[1].environment == {"CNI_COMMAND": "GC", "CNI_PATH": "/a:/b"}


def test_gc_is_left_out_where_the_list_says_so() -> None:
    bench = Bench("bridge", version="1.1.0", disable_gc=True)
    assert bench.chain.collect_garbage([]) == []
    assert bench.calls == []
