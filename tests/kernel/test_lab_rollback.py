"""A change that fails on its way leaves kernel, servers, addresses and captures as they were."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import pytest

from emulator.cluster.topology import load_topology
from emulator.cni.styles import load_style
from emulator.errors import DaemonError
from emulator.kernel.netns import netns_path
from emulator.lab.machinery import Machinery
from emulator.lab.runtime import Runtime
from emulator.lab.store import Ref
from emulator.traffic.model import Probe

pytestmark = pytest.mark.sandbox


class Fault(Exception):
    """What the test makes happen."""


def fail(*_args: Any, **_kwargs: Any) -> NoReturn:
    raise Fault("on purpose")


def pod(name: str, command: list[str] | None = None, port: int = 80) -> dict[str, Any]:
    container: dict[str, Any] = {"name": "c", "image": "x", "ports": [{"containerPort": port}]}
    if command:
        container["command"] = command
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {"containers": [container]}}


class Bench:
    """A lab inside this process, so that parts of it can be made to fail."""

    def __init__(self, style: str = "flannel") -> None:
        self.machinery = Machinery(allow_missing=False)
        self.runtime = Runtime(
            load_topology("three-nodes"), load_style(style), self.machinery, wire_accurate=False,
            progress=lambda _text: None,
        )  # fmt: skip
        self.runtime.start([])

    def reached(self, source: str, target: str, port: int = 80) -> bool:
        places = {item.name: item for item in self.runtime.current.pods}
        probe = Probe(
            id="p", netns=netns_path(places[source].ns), target=places[target].addresses[0], protocol="tcp", port=port,
            timeout=0.5,
        )  # fmt: skip
        return self.machinery.traffic.probe([probe])[0].reached


@pytest.fixture
def bench() -> Bench:
    return Bench()


def once(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, failing the first time that it is called."""
    calls = iter([fail])
    return lambda *args, **kwargs: next(calls, function)(*args, **kwargs)


def await_only(bench: Bench, route: Any) -> None:
    """Have every change wait for ``route``."""
    reach = bench.machinery.reach
    bench.machinery.reach = lambda old, new, routes, progress: reach(old, new, [route], progress)  # type: ignore[method-assign]


def break_waiting(bench: Bench) -> None:
    """After everything is wired, before anything is served."""
    bench.machinery.applier.wait_learned = fail  # type: ignore[method-assign]
    await_only(bench, object())


def break_serving(bench: Bench) -> None:
    """At the very end."""
    bench.machinery.traffic.serve = once(bench.machinery.traffic.serve)  # type: ignore[method-assign]


def break_wiring(bench: Bench) -> None:
    """After namespaces and devices are made."""
    bench.machinery.applier.impairments.set = once(bench.machinery.applier.impairments.set)  # type: ignore[method-assign]


@pytest.mark.parametrize("breakage", [break_waiting, break_serving, break_wiring])
@pytest.mark.parametrize("what", ["add", "replace"])
def test_failure_takes_the_whole_change_back(bench: Bench, breakage: Callable[[Bench], None], what: str) -> None:
    capture = bench.machinery.captures.start({"pod/default/n1-p1": (), "node/n1": ()}, everywhere=False)
    before = (bench.runtime.plan, bench.runtime.store.version, bench.runtime.cluster)
    breakage(bench)
    change: Callable[[], Any] = {
        "add": lambda: bench.runtime.apply([pod("new")]),
        "replace": lambda: bench.runtime.delete([Ref("", "Pod", "default", "n1-p1")]),
    }[what]
    with pytest.raises(Fault):
        change()
    assert (bench.runtime.plan, bench.runtime.store.version, bench.runtime.cluster) == before
    assert bench.runtime.broken == ""
    assert_sound(bench, capture)


@pytest.mark.parametrize("breakage", [break_serving, break_wiring])
def test_node_that_cannot_return_is_down_and_can_return_later(bench: Bench, breakage: Callable[[Bench], None]) -> None:
    capture = bench.machinery.captures.start({"pod/default/n1-p1": (), "node/n1": ()}, everywhere=False)
    bench.runtime.crash(["n1"])
    breakage(bench)
    with pytest.raises(Fault):
        bench.runtime.revive(["n1"])
    assert bench.runtime.down_nodes == {"n1"}
    assert bench.runtime.differences() == []
    bench.runtime.revive(["n1"])
    assert_sound(bench, capture)


def assert_sound(bench: Bench, capture: str) -> None:
    """The kernel is as planned, everything answers, and the capture sees it."""
    assert bench.runtime.differences() == []
    assert bench.reached("n2-p1", "n1-p1")
    assert bench.reached("n1-p1", "n3-p1")
    counts = bench.machinery.captures.stop(capture).per_namespace
    assert counts["pod/default/n1-p1"]["captured"] > 0
    assert counts["node/n1"]["captured"] > 0


def test_failure_that_cannot_be_undone_breaks_the_lab_and_says_so(bench: Bench) -> None:
    break_serving(bench)
    calls = iter([bench.machinery.applier.apply])
    bench.machinery.applier.apply = lambda *args: next(calls, fail)(*args)  # type: ignore[method-assign]
    with pytest.raises(Fault) as caught:
        bench.runtime.apply([pod("new")])
    assert "could not be undone" in caught.value.__notes__[0]
    assert "on purpose" in bench.runtime.broken


def test_routes_that_do_not_come_name_themselves_and_change_nothing() -> None:
    bench = Bench()
    from emulator.plan.model import Route

    never = Route(
        ns="node/n1", destination="10.99.0.0/26", via="192.168.50.12", device="eth0", protocol="bird", learned=True,
        component="bird", why="",
    )  # fmt: skip
    wait = bench.machinery.applier.wait_learned
    bench.machinery.applier.wait_learned = lambda routes, progress=None: wait(routes, 0.2)  # type: ignore[method-assign,assignment,misc]
    await_only(bench, never)
    with pytest.raises(DaemonError, match=r"10\.99\.0\.0/26"):
        bench.runtime.apply([pod("new")])
    assert bench.runtime.differences() == []
    assert "new" not in {item.name for item in bench.runtime.current.pods}
