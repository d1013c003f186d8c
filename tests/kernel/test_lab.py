"""A running lab, under each style: kernel equals plan, packets pass, changes are seen, files open."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from emulator import Lab
from emulator.errors import ManifestError, NotFound, UserError
from emulator.kernel import registry
from emulator.lab.records import ProbeRequest
from tests.kernel.waiting import eventually

pytestmark = pytest.mark.requires("netns", "veth", "vxlan", "ip", "mnexec")

STYLES = ["flannel", pytest.param("calico", marks=pytest.mark.requires("bird"))]
PODS = ["n1-p1", "n1-p2", "n1-p3", "n2-p1", "n2-p2", "n2-p3", "n3-p1", "n3-p2", "n3-p3"]
PATIENT = 4.0  # seconds for a probe that must be answered: a lost SYN is sent again after 1 and 3


@pytest.fixture(scope="module", autouse=True)
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    patch = pytest.MonkeyPatch()
    path = tmp_path_factory.mktemp("labs")
    patch.setenv(registry.BASE_VARIABLE, str(path))
    yield path
    patch.undo()


@pytest.fixture(scope="module", params=STYLES)
def lab(request: pytest.FixtureRequest, base: Path) -> Iterator[Lab]:
    with Lab("three-nodes", request.param) as running:
        yield running


@pytest.fixture
def applied(lab: Lab) -> Iterator[Any]:
    """Apply objects for the length of a test."""
    names: list[tuple[str, str]] = []

    def apply(*objects: dict[str, Any]) -> list[dict[str, str]]:
        names.extend((obj["kind"], obj["metadata"]["name"]) for obj in objects)
        return lab.apply(*objects)

    yield apply
    for kind, name in names:
        lab.delete(kind, name)


def pod(name: str, command: list[str] | None = None, **spec: Any) -> dict[str, Any]:
    container: dict[str, Any] = {"name": "c", "image": "x", "ports": [{"containerPort": 8080}]}
    if command:
        container["command"] = command
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {"containers": [container], **spec}}


def pod_object(lab: Lab, name: str) -> dict[str, Any]:
    return lab.get("pod", name)[0]


# The plan and the kernel


def test_kernel_holds_exactly_the_plan_after_up(lab: Lab) -> None:
    assert lab.verify() == []


def test_kernel_holds_exactly_the_plan_after_every_kind_of_change(lab: Lab) -> None:
    lab.apply(pod("a"), pod("b", nodeName="n2"), pod("host", hostNetwork=True))
    assert lab.verify() == []
    labelled = pod("a")
    labelled["metadata"]["labels"] = {"x": "y"}
    lab.apply(labelled)
    assert lab.verify() == []
    lab.delete("pod", "a")
    assert lab.verify() == []
    lab.delete("pod", "b")
    lab.delete("pod", "host")
    lab.delete("pod", "n3-p3")  # the topology makes it anew
    assert lab.verify() == []


def test_a_manifest_to_delete_may_be_of_a_namespace_that_only_the_lab_has(lab: Lab) -> None:
    lab.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "apart"}})
    there = pod("a")
    there["metadata"]["namespace"] = "apart"
    lab.apply(there)
    (change,) = lab.delete_manifests(there, grace_period=0)
    assert (change["namespace"], change["name"], change["action"]) == ("apart", "a", "deleted")
    assert lab.get("pods", namespace="apart") == []
    lab.delete("namespace", "apart")


def test_what_is_changed_by_hand_is_told(lab: Lab) -> None:
    lab.run("n1", "ip", "route", "add", "blackhole", "10.99.0.0/16")
    (line,) = lab.verify()
    assert line.startswith("node/n1: route 10.99.0.0/16")
    lab.run("n1", "ip", "route", "del", "blackhole", "10.99.0.0/16")
    assert lab.verify() == []


def test_refused_manifest_changes_nothing(lab: Lab) -> None:
    before = (lab.plan(), lab.cluster())
    with pytest.raises(ManifestError):
        lab.apply(pod("good"), {**pod("bad"), "spec": {"containers": []}})
    with pytest.raises(UserError):
        lab.apply(*(pod(f"p{number}", nodeName="n1") for number in range(120)))
    assert (lab.plan(), lab.cluster()) == before


# Traffic


def test_every_pod_reaches_every_other_over_tcp_udp_and_icmp(lab: Lab) -> None:
    requests = [
        ProbeRequest(source, target, port, protocol)  # type: ignore[arg-type]
        for source in PODS
        for target in PODS
        for protocol, port in (("tcp", 80), ("udp", 80), ("icmp", 0))
        if source != target
    ]
    answers = lab.probes(requests)
    assert [f"{a.source} {a.target} {a.protocol}: {a.result.verdict}" for a in answers if not a.reached] == []
    assert {a.result.answered_by for a in answers if a.protocol == "tcp"} == set(PODS)


@pytest.mark.parametrize(
    ("target", "port", "verdict"),
    [("n2-p1", 81, "refused"), ("10.9.9.9", 0, "unreachable"), ("n2", 0, "delivered"), ("client", 0, "delivered")],
)
def test_verdict_of_a_probe(lab: Lab, target: str, port: int, verdict: str) -> None:
    answer = lab.probe("n1-p1", target, port)
    assert (answer.result.verdict, answer.reached) == (verdict, verdict == "delivered")


def test_outside_host_sees_the_node_behind_a_pod(lab: Lab) -> None:
    node = next(node for node in lab.cluster().nodes if node.name == "n1")
    port = next(machine.ports[0] for machine in lab.cluster().topology.machines if machine.name == "client")
    answer = lab.probe("n1-p1", "client", port)
    assert answer.result.source_seen.rpartition(":")[0] == node.addresses[0]


def test_trace_follows_a_packet_from_pod_to_pod(lab: Lab) -> None:
    trace = lab.trace("n1-p1", "n2-p1", 80)
    assert trace.answer.reached
    assert trace.request is not None
    assert trace.reply is not None
    assert [trace.request.hops[0].ns, trace.request.hops[-1].ns] == ["pod/default/n1-p1", "pod/default/n2-p1"]
    assert [trace.reply.hops[0].ns, trace.reply.hops[-1].ns] == ["pod/default/n2-p1", "pod/default/n1-p1"]
    assert trace.request.hops[-1].packet.ttl == 62
    assert all(hop.reasons for hop in trace.request.hops)
    assert trace.stats.warnings == ()


@pytest.mark.requires("tshark")
def test_capture_opens_in_tshark_with_an_interface_per_hop(lab: Lab, tmp_path: Path) -> None:
    with lab.capture("n1-p1", "n1", "n2-p1:eth0") as capture:
        assert lab.probe("n1-p1", "n2-p1", timeout=PATIENT).reached
    capture.save(tmp_path / "c.pcapng")
    said = subprocess.run(
        ["tshark", "-r", tmp_path / "c.pcapng", "-Y", "icmp.type==8", "-T", "fields", "-e", "frame.time_epoch", "-e",
         "frame.interface_name"], capture_output=True, text=True, check=True,
    )  # fmt: skip
    interfaces = [line.split()[1] for line in sorted(said.stdout.splitlines())]
    assert interfaces[0] == "default_n1-p1:eth0"
    assert interfaces[-1] == "default_n2-p1:eth0"
    assert {name.partition(":")[0] for name in interfaces} == {"default_n1-p1", "n1", "default_n2-p1"}
    assert capture.stats.captured > 0
    assert set(capture.stats.per_namespace) == {"pod/default/n1-p1", "node/n1", "pod/default/n2-p1"}


@pytest.mark.parametrize("hop", ["nobody", "n1:nonesuch", "underlay:eth0"])
def test_capture_where_nothing_is_is_refused(lab: Lab, hop: str) -> None:
    with pytest.raises(NotFound), lab.capture(hop):
        pass


def test_capture_of_everything_takes_in_what_is_born(lab: Lab, applied: Any) -> None:
    with lab.capture() as capture:
        applied(pod("newborn"))
        assert lab.probe("n1-p1", "newborn", 8080, timeout=PATIENT).reached
    assert any(event.ns == "pod/default/newborn" for event in capture.events())


# Changes, watched


def test_watch_tells_changes_in_their_order(lab: Lab) -> None:
    version = lab.client.call("GET", "/api/v1/pods")["metadata"]["resourceVersion"]
    events: list[tuple[str, str]] = []

    def follow() -> None:
        for event in lab.client.lines(f"/api/v1/pods?watch=1&resourceVersion={version}&timeoutSeconds=10"):
            events.append((event["type"], event["object"]["metadata"]["name"]))
            if len(events) == 5:
                return

    watcher = threading.Thread(target=follow)
    watcher.start()
    lab.apply(pod("seen"))
    labelled = pod("seen")
    labelled["metadata"]["labels"] = {"a": "b"}
    lab.apply(labelled)
    lab.delete("pod", "seen")
    lab.delete("pod", "n3-p1")
    watcher.join(10)
    assert events == [
        ("ADDED", "seen"), ("MODIFIED", "seen"), ("DELETED", "seen"), ("DELETED", "n3-p1"), ("ADDED", "n3-p1"),
    ]  # fmt: skip


def test_replaced_pod_has_another_address_and_is_reached_there(lab: Lab) -> None:
    old = pod_object(lab, "n2-p3")["status"]["podIP"]
    lab.delete("pod", "n2-p3")
    new = pod_object(lab, "n2-p3")["status"]["podIP"]
    assert new != old
    assert lab.probe("n1-p1", "n2-p3", 80, timeout=PATIENT).reached
    assert not lab.probe("n1-p1", old, 80, timeout=0.2).reached


def test_pod_whose_ports_change_answers_on_the_new_ones_at_its_old_address(lab: Lab, applied: Any) -> None:
    applied(pod("web"))
    address = pod_object(lab, "web")["status"]["podIP"]
    changed = pod("web")
    changed["spec"]["containers"][0]["ports"] = [{"containerPort": 9090}]
    lab.apply(changed)
    assert pod_object(lab, "web")["status"]["podIP"] == address
    assert lab.probe("n1-p1", "web", 9090, timeout=PATIENT).reached
    assert lab.probe("n1-p1", "web", 8080).result.verdict == "refused"


def test_host_network_pods_of_a_node_share_its_ports(lab: Lab, applied: Any) -> None:
    second = pod("h2", hostNetwork=True, nodeName="n1")
    second["spec"]["containers"][0]["ports"] = [{"containerPort": 9090}]
    applied(pod("h1", hostNetwork=True, nodeName="n1"), second)
    assert lab.probe("n2-p1", "n1", 8080, timeout=PATIENT).reached
    assert lab.probe("n2-p1", "n1", 9090, timeout=PATIENT).reached
    lab.delete("pod", "h2")
    lab.apply(second)
    assert lab.probe("n2-p1", "n1", 8080, timeout=PATIENT).reached


def test_changes_and_probes_at_the_same_time_do_not_disturb_each_other(lab: Lab) -> None:
    errors: list[BaseException] = []

    def change(number: int) -> None:
        try:
            for _ in range(3):
                lab.apply(pod(f"busy{number}"))
                lab.delete("pod", f"busy{number}")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=change, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    verdicts = []
    while any(thread.is_alive() for thread in threads):
        verdicts.append(lab.probe("n1-p1", "n2-p1", 80).result.verdict)
        lab.status()
        lab.logs()
    assert errors == []
    assert set(verdicts) == {"delivered"}
    assert lab.verify() == []


# Commands of pods


def test_command_that_the_host_has_runs_for_real_in_the_pods_namespaces(lab: Lab, applied: Any) -> None:
    script = "hostname; ip -o -4 address show eth0; cat /etc/hosts; exec python3 -m http.server 8080"
    applied(pod("real", ["sh", "-c", script]))
    assert pod_object(lab, "real")["metadata"]["annotations"]["cnilab.dev/served-by"] == "sh"
    address = pod_object(lab, "real")["status"]["podIP"]
    eventually(lambda: lab.probe("n2-p1", "real", 8080).result.verdict == "delivered")
    (log,) = lab.logs("real").values()
    assert log.splitlines()[0] == "real"
    assert f"inet {address}/" in log
    assert f"{address}\treal" in log
    (process,) = [item for item in lab.status().processes if item["place"] == "default/real"]
    assert (process["state"], process["restarts"]) == ("running", 0)
    assert lab.run("real", "ss", "-ltn").stdout.count(":8080") == 1


def test_process_of_a_deleted_pod_is_gone(lab: Lab) -> None:
    lab.apply(pod("doomed", ["sh", "-c", "trap '' TERM; sleep 1234 & while :; do sleep 0.1; done"]))
    eventually(lambda: "sleep 1234" in lab.run("n1", "ps", "-eo", "args").stdout)
    lab.delete("pod", "doomed")
    assert "sleep 1234" not in lab.run("n1", "ps", "-eo", "args").stdout
    assert "default/doomed" not in {item["place"] for item in lab.status().processes}


def test_command_that_dies_is_started_again_and_then_held_back(lab: Lab, applied: Any) -> None:
    applied(pod("crashing", ["sh", "-c", "echo last words; exit 3"]))

    def state() -> Any:
        (process,) = [item for item in lab.status().processes if item["place"] == "default/crashing"]
        return process if process["restarts"] == 1 and process["state"] == "died" else None

    process = eventually(state)
    assert (process["code"], process["log"]) == (3, ["last words", "last words"])


@pytest.mark.parametrize(("policy", "status", "restarts"), [("Never", 1, 0), ("OnFailure", 0, 0), ("OnFailure", 1, 1)])
def test_restart_policy_is_followed(lab: Lab, applied: Any, policy: str, status: int, restarts: int) -> None:
    applied(pod("once", ["sh", "-c", f"exit {status}"], restartPolicy=policy))

    def ended() -> Any:
        (process,) = [item for item in lab.status().processes if item["place"] == "default/once"]
        return process if process["state"] != "running" and process["restarts"] == restarts else None

    assert eventually(ended)["state"] == ("died" if status else "completed")
    time.sleep(0.1)
    assert eventually(ended, 0)["restarts"] == restarts


def test_chatty_command_keeps_only_the_end_of_its_log(lab: Lab, applied: Any) -> None:
    applied(pod("chatty", ["sh", "-c", "yes 0123456789 | head -c 3000000; echo END; sleep 100"]))
    eventually(lambda: lab.logs("chatty")["default/chatty/c"].endswith("END\n"))
    assert len(lab.logs("chatty")["default/chatty/c"]) <= 1024 * 1024


def test_command_that_the_host_lacks_is_answered_by_cnilab_and_said(lab: Lab, applied: Any) -> None:
    applied(pod("ghost", ["no-such-program", "--flag"]))
    assert pod_object(lab, "ghost")["metadata"]["annotations"]["cnilab.dev/served-by"] == "cnilab"
    assert lab.probe("n1-p1", "ghost", 8080).result.answered_by == "ghost"
    assert any("ghost" in notice and "'no-such-program'" in notice for notice in lab.status().notices)


# Commands of people


def test_run_is_in_the_namespaces_of_the_place(lab: Lab) -> None:
    assert lab.run("n1-p1", "hostname").stdout == "n1-p1\n"
    assert lab.run("node/n2", "hostname").stdout == "n2\n"
    assert pod_object(lab, "n1-p1")["status"]["podIP"] in lab.run("n1-p1", "ip", "address").stdout
    assert lab.run("n1-p1", "sh", "-c", "exit 7").returncode == 7


# Faults


def test_cable_that_is_pulled_cuts_a_node_off_until_it_is_plugged_in(lab: Lab) -> None:
    lab.fault("link-down", "n3")
    assert lab.status().faults == ("the cable of n3:eth0 is unplugged",)
    assert lab.verify() == ["underlay: device s1-n3 is down"]
    assert not lab.probe("n1-p1", "n3-p1", timeout=0.2).reached
    lab.apply(pod("meanwhile", nodeName="n3"))  # nothing to do with the cable
    lab.delete("pod", "meanwhile")
    lab.fault("link-up", "n3")
    assert lab.status().faults == ()
    eventually(lambda: lab.probe("n1-p1", "n3-p1", timeout=0.2).reached)
    eventually(lambda: lab.verify() == [])


def test_crashed_node_is_not_ready_and_returns_whole(lab: Lab) -> None:
    lab.fault("node-crash", "n3")
    (node,) = lab.get("node", "n3")
    assert [c["status"] for c in node["status"]["conditions"] if c["type"] == "Ready"] == ["Unknown"]
    assert lab.status().down_nodes == ("n3",)
    assert lab.verify() == []
    with pytest.raises(UserError, match="node n3 is down"):
        lab.probe("n3-p1", "n1-p1")
    with pytest.raises(UserError, match="node n3 is down"):
        lab.run("n3-p1", "true")
    assert not lab.probe("n1-p1", "n3-p1", timeout=0.2).reached
    lab.apply(pod("meanwhile", nodeName="n3"), pod("elsewhere", nodeName="n1"))
    assert lab.verify() == []
    lab.fault("node-return", "n3")
    eventually(lambda: lab.verify() == [])  # with calico: once BGP has brought the routes back
    for target in ("n3-p1", "meanwhile"):
        assert lab.probe("n1-p1", target, timeout=PATIENT).reached
    lab.delete("pod", "meanwhile")
    lab.delete("pod", "elsewhere")


@pytest.mark.parametrize(
    ("kind", "target", "error"),
    [("node-crash", "client", NotFound), ("link-down", "n1-p1", UserError), ("daemon-kill", "n1", NotFound)],
)
def test_fault_that_cannot_be_is_refused(lab: Lab, kind: str, target: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        lab.fault(kind, target, **({"daemon": "nonesuch"} if kind == "daemon-kill" else {}))
    assert lab.status().faults == ()


# Life


def test_lab_in_a_with_block_ends_with_it(base: Path) -> None:
    with Lab("single-node") as running:
        assert running.name in {record.name for record in registry.labs()}
        name = running.name
    assert name not in {record.name for record in registry.labs()}
    with pytest.raises(NotFound):
        running.status()


def test_lab_in_a_with_block_ends_with_its_process(base: Path) -> None:
    script = (
        "from emulator import Lab\nimport sys\n"
        "with Lab('single-node', name='orphan') as lab:\n    print('up', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == b"up\n"
    assert "orphan" in {record.name for record in registry.labs()}
    process.kill()
    process.wait()
    eventually(lambda: "orphan" not in {record.name for record in registry.labs()}, 5)
    process.stdin.close()
    process.stdout.close()


def test_error_while_a_lab_starts_leaves_nothing(base: Path) -> None:
    for arguments in (("three-nodes", "nonesuch"), ("nonesuch",)):
        with pytest.raises(NotFound), Lab(*arguments):
            pass
    assert not any(path.name.startswith("nonesuch") for path in base.iterdir())


def test_two_labs_with_equal_addresses_do_not_see_each_other(base: Path) -> None:
    with Lab("single-node", name="one") as one, Lab("single-node", name="two") as two:
        names = [item.name for item in one.cluster().pods]
        assert one.cluster() == two.cluster()
        with two.capture() as elsewhere:
            for _ in range(5):
                assert one.probe(names[0], names[1], 80).reached
        seen = {journey.hops[0].packet.protocol for journey in elsewhere.journeys()}
        assert not seen & {"tcp", "udp", "icmp"}
        two.delete("pod", names[1])
        assert one.probe(names[0], names[1], 80).result.answered_by == names[1]
        assert one.verify() == two.verify() == []


@pytest.mark.requires("ipv6")
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(("topology", "families"), [("dual-stack", (4, 6)), ("ipv6", (6,))])
def test_every_family_of_a_topology_reaches_pods_and_the_outside(
    base: Path, style: str, topology: str, families: tuple[int, ...]
) -> None:
    with Lab(topology, style) as running:
        cluster = running.cluster()
        first, last = cluster.pods[0].name, cluster.pods[-1].name
        outside = next(machine for machine in cluster.topology.machines if machine.kind == "host")
        for family in families:
            assert running.probe(first, last, 80, family=family).reached
            assert running.probe(first, outside.name, outside.ports[0], family=family).reached
            assert running.probe(first, last, protocol="icmp", family=family).reached
        assert running.verify() == []
