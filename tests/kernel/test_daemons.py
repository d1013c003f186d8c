"""Daemons run in their machine, are waited for, logged, reloaded, and reported when they die."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from msgspec.structs import replace

from emulator.errors import ApplyError, DaemonError, NotFound
from emulator.kernel.applier import Applier
from emulator.kernel.daemons import Supervisor
from emulator.kernel.underlay import LabNet
from emulator.plan.diff import Operation
from emulator.plan.model import Address, AnyObject, Bridge, Daemon, Namespace, Plan, Route

pytestmark = pytest.mark.sandbox

NODE = "node/n1"
# A daemon in a line of Python: it says hello, answers on a socket after a moment, and counts hang-up signals.
SERVER = """
import os, signal, socket, sys, time
signal.signal(signal.SIGHUP, lambda *_: print("reloaded", flush=True))
print("hello from", socket.gethostname(), flush=True)
time.sleep(0.2)
s = socket.socket(socket.AF_UNIX); s.bind("/run/server.sock"); s.listen()
while True:
    c, _ = s.accept(); c.close()
"""


def shell(text: str, **fields: object) -> Daemon:
    return Daemon(ns=NODE, name="d", argv=("/bin/sh", "-c", text), **fields)  # type: ignore[arg-type]


class Deaths:
    """What the supervisor reported."""

    def __init__(self) -> None:
        self.said: list[tuple[str, str, str]] = []
        self.happened = threading.Event()

    def __call__(self, ns: str, name: str, text: str) -> None:
        self.said.append((ns, name, text))
        self.happened.set()


@pytest.fixture
def deaths() -> Deaths:
    return Deaths()


@pytest.fixture
def supervisor(deaths: Deaths) -> Iterator[Supervisor]:
    net = LabNet()
    net.add_machine(Namespace(ns=NODE, role="node", hostname="n1"))
    made = Supervisor(net, deaths)
    yield made
    made.close()
    net.close()


def nothing(_: AnyObject) -> None:
    """No journal."""


def until(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 5
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def test_daemon_is_ready_when_its_socket_answers(supervisor: Supervisor) -> None:
    daemon = Daemon(ns=NODE, name="d", argv=("python3", "-c", SERVER), ready_socket="/run/server.sock")

    supervisor.start([daemon], nothing)

    (status,) = supervisor.status()
    assert (status.state, status.code) == ("running", None)
    assert until(lambda: "hello from n1" in supervisor.logs()[f"{NODE}/d"])
    assert not os.path.exists("/run/server.sock")  # it is in the machine's own /run


def test_daemon_that_dies_at_the_start_is_an_error_with_its_words(supervisor: Supervisor) -> None:
    with pytest.raises(DaemonError, match=r"d in node/n1 ended with status 3: bad option") as caught:
        supervisor.start([shell("echo starting; echo bad option; exit 3", ready_socket="/run/x")], nothing)

    assert caught.value.log == ("starting", "bad option")


def test_daemon_that_dies_later_is_reported_with_its_last_words(supervisor: Supervisor, deaths: Deaths) -> None:
    supervisor.start([shell("echo out of luck; sleep 0.2; exit 7")], nothing)

    assert deaths.happened.wait(5)
    assert deaths.said == [(NODE, "d", "d in node/n1 ended with status 7: out of luck")]
    (status,) = supervisor.status()
    assert (status.state, status.code, status.log) == ("died", 7, ("out of luck",))


def test_daemon_killed_as_a_fault_is_reported_and_can_be_started_again(supervisor: Supervisor, deaths: Deaths) -> None:
    supervisor.start([shell("exec sleep 1000")], nothing)

    supervisor.kill(NODE, "d")

    assert deaths.happened.wait(5)
    assert "was killed by SIGKILL" in deaths.said[0][2]
    supervisor.restart(NODE, "d")
    assert supervisor.status()[0].state == "running"


def test_stopped_daemon_is_no_death_even_if_it_ignores_sigterm(supervisor: Supervisor, deaths: Deaths) -> None:
    daemon = shell("trap '' TERM; echo deaf; while :; do sleep 0.1; done")
    supervisor.start([daemon], nothing)
    assert until(lambda: "deaf" in supervisor.logs()[f"{NODE}/d"])
    pid = supervisor.status()[0].pid

    supervisor.stop([daemon], nothing)

    assert not os.path.exists(f"/proc/{pid}")
    assert supervisor.status() == []
    assert deaths.said == []


def test_changed_file_reloads_the_daemon_and_another_command_line_restarts_it(supervisor: Supervisor) -> None:
    reload = ("pkill", "-HUP", "-f", "server.sock")
    daemon = Daemon(ns=NODE, name="d", argv=("python3", "-c", SERVER), reload=reload, ready_socket="/run/server.sock")
    supervisor.start([daemon], nothing)
    pid = supervisor.status()[0].pid

    supervisor.change([(daemon, daemon)], nothing)

    assert until(lambda: "reloaded" in supervisor.logs()[f"{NODE}/d"])
    assert supervisor.status()[0].pid == pid
    other = shell("exec sleep 1000")
    supervisor.change([(daemon, other)], nothing)
    assert supervisor.status()[0].pid != pid


def test_log_is_bounded(supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emulator.kernel.daemons.LOG_LIMIT", 10_000)

    supervisor.start([shell("seq 20000; echo end; exec sleep 1000")], nothing)

    assert until(lambda: "end" in supervisor.status()[0].log)
    assert len(supervisor.logs()[f"{NODE}/d"]) < 200_000  # two files of the limit and one pipe's worth each
    assert supervisor.status()[0].log[-2:] == ("20000", "end")


def test_missing_program_and_unknown_daemon_are_named(supervisor: Supervisor) -> None:
    with pytest.raises(ApplyError, match="/no/such/program"):
        supervisor.start([Daemon(ns=NODE, name="d", argv=("/no/such/program",))], nothing)
    with pytest.raises(NotFound, match="nobody"):
        supervisor.kill(NODE, "nobody", signal.SIGTERM)


# learned routes

LEARNED = Route(ns=NODE, destination="10.7.0.0/24", via="10.0.0.2", device="br", protocol="bird", learned=True)


def routed(route: Route, daemon: Daemon | None, *more: Route) -> tuple[Applier, Plan]:
    objects: list[AnyObject] = [
        Namespace(ns=NODE, role="node", hostname="n1"),
        Bridge(ns=NODE, name="br", mtu=1500),
        Address(ns=NODE, device="br", address="10.0.0.1/24"),
        *([daemon] if daemon else []),
    ]
    applier = Applier()
    applier.apply([Operation(verb="add", new=item) for item in objects])
    return applier, Plan(style="t", topology="t", fragments={"all": (*objects, route, *more)})


def test_wait_ends_as_soon_as_the_last_route_comes() -> None:
    applier, plan = routed(LEARNED, shell("sleep 0.3; ip route add 10.7.0.0/24 via 10.0.0.2 proto bird; sleep 1000"))
    started = time.monotonic()

    applier.wait_learned(plan, timeout=10)

    assert 0.1 < time.monotonic() - started < 2
    applier.close()


def test_wait_goes_on_as_long_as_routes_come() -> None:
    others = [replace(LEARNED, destination=f"10.7.{number}.0/24") for number in (1, 2)]
    adding = "sleep 0.6; ip route add 10.7.{}.0/24 via 10.0.0.2 proto bird; "
    script = "".join(adding.format(number) for number in range(3))
    applier, plan = routed(LEARNED, shell(f"{script} sleep 1000"), *others)

    applier.wait_learned(plan, timeout=1.2)

    applier.close()


def test_route_by_another_way_does_not_count_and_is_named() -> None:
    applier, plan = routed(LEARNED, shell("ip route add 10.7.0.0/24 via 10.0.0.3 proto bird; echo sent; sleep 1000"))

    with pytest.raises(DaemonError, match=r"1 routes are missing .*10\.7\.0\.0/24 via 10\.0\.0\.2") as caught:
        applier.wait_learned(plan, timeout=0.5)

    assert caught.value.log == ("d: sent",)
    applier.close()


def test_dead_routing_daemon_ends_the_wait_at_once() -> None:
    applier, plan = routed(LEARNED, shell("sleep 0.2; echo cannot bind; exit 1"))
    started = time.monotonic()

    with pytest.raises(DaemonError, match="the routing daemon of node/n1 died") as caught:
        applier.wait_learned(plan, timeout=20)

    assert time.monotonic() - started < 5
    assert caught.value.log == ("d: cannot bind",)
    applier.close()
