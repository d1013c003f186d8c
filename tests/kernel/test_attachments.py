"""Real CNI plugins wire pods; those that misbehave are found out, and undone."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from emulator.cluster.assemble import assemble
from emulator.cluster.model import Cluster
from emulator.cluster.topology import parse_topology
from emulator.cni.styles import load_style
from emulator.errors import PluginError
from emulator.kernel.applier import Applier
from emulator.kernel.attachments import Attachments, Finding
from emulator.kernel.footprint import RESULTS
from emulator.kernel.namespaces import within
from emulator.kernel.netns import netns_path
from emulator.kernel.readback import differences
from emulator.kernel.syscalls import inside
from emulator.lab.effective import without_nodes
from emulator.plan.build import build
from emulator.plan.diff import diff
from emulator.plan.model import CniAttachment, Plan

pytestmark = [pytest.mark.sandbox(timeout=120), pytest.mark.requires("cni-plugins", "iptables", "bridge-nf")]

MISBEHAVING = Path(__file__).parent / "misbehaving-plugins"
DEBIAN = "/usr/lib/cni"
PATIENCE = 3.0  # seconds; Python takes up to one to start on a busy machine
TOPOLOGY = """
name: {name}
podCIDRs: [10.244.0.0/16]
serviceCIDRs: [10.96.0.0/12]
pods: {pods}
switches:
  - {{name: s1, cidrs: [192.168.50.0/24]}}
nodes:
{nodes}
routers:
  - {{name: tor}}
links:
  - {{from: tor, to: s1}}
"""
BRIDGE: dict[str, Any] = {
    "type": "bridge",
    "bridge": "cni0",
    "isDefaultGateway": True,
    "ipMasq": True,
    "hairpinMode": True,
    "ipam": {"type": "host-local", "ranges": [[{"subnet": "{{.PodCIDR}}"}]]},
}
MINIMAL = {"type": "minimal", "address": "10.7.0.2/24"}
POD = "pod/default/n1-p1"
Plugin = dict[str, Any]


@pytest.fixture
def applier() -> Iterator[Applier]:
    made = Applier()
    made.attachments = Attachments(made.net, PATIENCE)
    yield made
    made.close()


class Bench:
    """A lab without traffic: its plan, and what came of it."""

    def __init__(self, applier: Applier, cluster: Cluster, plan: Plan) -> None:
        assert applier.attachments is not None
        self.applier = applier
        self.runtime = applier.attachments
        self.cluster = cluster
        self.plan = plan

    def up(self) -> Bench:
        self.applier.apply(diff(None, self.plan))
        return self

    def remove_pods(self) -> None:
        rest = {name: items for name, items in self.plan.fragments.items() if not name.startswith("pod/")}
        bare = Plan(style=self.plan.style, topology=self.plan.topology, fragments=rest)
        self.applier.apply(diff(self.plan, bare))
        self.plan = bare

    def texts(self, kind: str) -> list[str]:
        return [problem.text for problem in self.runtime.problems() if problem.kind == kind]

    def in_node(self, command: str, node: str = "node/n1") -> str:
        return within(self.applier.net.handle(node), lambda: output(command))

    def in_pod(self, command: str, pod: str = POD) -> str:
        with inside(netns_path(pod)):
            return output(command)


Make = Callable[..., Bench]


@pytest.fixture
def make(applier: Applier, tmp_path: Path) -> Make:
    def bench(*plugins: Plugin, version: str = "1.0.0", nodes: int = 1, pods: int = 1, **more: Any) -> Bench:
        file = tmp_path / "10-test.conflist"
        network = {"cniVersion": version, "name": "testnet", **more, "plugins": plugins}
        file.write_text(json.dumps(network))
        names = "".join(f"  - {{name: n{n + 1}, switch: s1}}\n" for n in range(nodes))
        topology = parse_topology(TOPOLOGY.format(name="t", nodes=names, pods=pods), "t.yaml")
        style = load_style(f"conflist={file};{DEBIAN}:{MISBEHAVING}")
        cluster = assemble(topology, [], style.ipam(topology), None)
        return Bench(applier, cluster, build(cluster, style))

    return bench


def output(command: str) -> str:
    return subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True).stdout


def running(name: str) -> list[str]:
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path(f"/proc/{entry}/cmdline").read_text().split("\0")
        except OSError:
            continue
        if words[0].endswith(name):
            found.append(" ".join(words).strip())
    return found


# ---------------------------------------------------------------- real plugins


def test_pods_get_the_addresses_that_the_plugins_report(make: Make) -> None:
    bench = make(BRIDGE, nodes=2, pods=2).up()
    assert bench.runtime.addresses() == {
        "pod/default/n1-p1": ("10.244.1.2",),
        "pod/default/n1-p2": ("10.244.1.3",),
        "pod/default/n2-p1": ("10.244.2.2",),
        "pod/default/n2-p2": ("10.244.2.3",),
    }
    assert "inet 10.244.1.2/24" in bench.in_pod("ip addr show eth0")
    assert "default via 10.244.1.1" in bench.in_pod("ip route")


def test_the_kernel_holds_what_plan_and_results_say(make: Make) -> None:
    bench = make(BRIDGE, {"type": "portmap", "capabilities": {"portMappings": True}}).up()
    assert differences(bench.plan, bench.applier) == []
    assert bench.runtime.problems() == []


def test_results_are_compared_with_the_kernel_whenever_asked(make: Make) -> None:
    bench = make(BRIDGE).up()
    bench.in_pod("ip addr del 10.244.1.2/24 dev eth0; ip link set eth0 mtu 1300")
    found = bench.runtime.differences()
    assert f"{POD}: eth0 in the pod has no address, not 10.244.1.2/24" in found
    assert any("the pod has no route 0.0.0.0/0" in line for line in found)


def test_nodes_do_not_share_leases_and_the_machine_sees_none(make: Make) -> None:
    bench = make({**BRIDGE, "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.5.0.0/24"}]]}}, nodes=2).up()
    assert bench.runtime.addresses() == {POD: ("10.5.0.2",), "pod/default/n2-p1": ("10.5.0.2",)}
    assert not os.path.exists("/var/lib/cni/networks/testnet")


def test_one_address_on_two_nodes_is_a_clash(make: Make) -> None:
    bench = make({**BRIDGE, "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.5.0.0/24"}]]}}, nodes=2).up()
    (text,) = bench.texts("clash")
    assert "10.5.0.2 is the address of default/n" in text


def test_the_plan_then_tells_who_made_which_device(make: Make) -> None:
    bench = make(BRIDGE, pods=2).up()
    annotated = bench.runtime.annotated(bench.plan)
    first, second = (item for item in annotated if isinstance(item, CniAttachment))
    for item in (first, second):
        made = {(device.name if device.kind == "bridge" else device.kind): device for device in item.devices}
        assert made["cni0"].plugin == "bridge"
        assert {(device.ns, device.plugin) for device in item.devices if device.name == "eth0"} == {(item.ns, "bridge")}
        (host_end,) = (device for device in item.devices if device.ns == "node/n1" and device.kind == "veth")
        assert host_end.bridge == "cni0"
    assert first.addresses == ("10.244.1.2/24",)
    assert diff(bench.plan, annotated) == []


def test_a_whole_chain_of_the_distributions_plugins_leaves_nothing_behind(make: Make) -> None:
    bench = make(
        BRIDGE,
        {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True},
        {"type": "firewall"},
        {"type": "bandwidth", "ingressRate": 10_000_000, "ingressBurst": 1_000_000, "egressRate": 10_000_000,
         "egressBurst": 1_000_000},
        {"type": "tuning", "sysctl": {"net.core.somaxconn": "500"}},
    ).up()  # fmt: skip
    assert bench.runtime.problems() == []
    assert "tbf" in bench.in_node("tc qdisc")
    assert bench.in_pod("cat /proc/sys/net/core/somaxconn").strip() == "500"
    bench.remove_pods()
    assert bench.runtime.problems() == []
    assert bench.in_node("ls /var/lib/cni/networks/testnet").split() == ["last_reserved_ip.0", "lock"]
    assert bench.in_node("ls /var/lib/cni/results") == ""


def test_ptp_gives_a_pod_a_cable_of_its_own(make: Make) -> None:
    bench = make({"type": "ptp", "ipMasq": True, "ipam": {**BRIDGE["ipam"], "routes": [{"dst": "0.0.0.0/0"}]}}).up()
    assert bench.runtime.problems() == []
    assert "10.244.1.2" in bench.in_node("ip route")
    bench.remove_pods()
    assert bench.runtime.problems() == []


def test_check_and_gc_of_the_distributions_plugins(make: Make) -> None:
    bench = make(BRIDGE).up()
    assert bench.runtime.check() == [Finding("n1", "default/n1-p1")]
    assert bench.runtime.collect_garbage()[0].complaints == ()
    bench.in_node("ip link del cni0")
    (finding,) = bench.runtime.check()
    assert any("plugin bridge, CHECK: failed with code" in line for line in finding.complaints)


def test_check_of_bridge_rejects_a_route_without_a_gateway_as_upstream_does(make: Make) -> None:
    ipam = {**BRIDGE["ipam"], "routes": [{"dst": "192.0.2.0/24"}]}
    bench = make({"type": "bridge", "bridge": "cni0", "isGateway": True, "ipam": ipam}).up()
    assert bench.runtime.problems() == []
    (finding,) = bench.runtime.check()
    assert any("Expected Route" in line for line in finding.complaints)


def test_disable_check_is_honoured(make: Make) -> None:
    bench = make(BRIDGE, {"type": "not-ready"}, disableCheck=True).up()
    assert bench.runtime.check() == [Finding("n1", "default/n1-p1", skipped="disableCheck")]


def test_a_pod_that_cannot_be_attached_refuses_the_change_and_leaves_nothing(make: Make, applier: Applier) -> None:
    bench = make(BRIDGE, {"type": "refuses"})
    with pytest.raises(PluginError) as error:
        bench.up()
    assert error.value.message == (
        "pod default/n1-p1 on n1: plugin refuses, ADD: failed with code 7, invalid network configuration: "
        "no such mode; mode was 'turbo'"
    )
    assert not applier.broken
    assert bench.runtime.addresses() == {}
    assert bench.runtime.problems() == []  # bridge was told to DEL what it had made
    assert not os.path.exists(netns_path(POD))


def test_a_crashed_node_runs_no_plugins_any_more(make: Make) -> None:
    bench = make(BRIDGE, {"type": "stuck-del"}, nodes=2).up()
    rest = without_nodes(bench.plan, bench.cluster, ["n2"])
    bench.applier.apply(diff(bench.plan, rest))
    assert bench.runtime.problems() == []
    bench.applier.apply(diff(rest, bench.plan))
    assert bench.runtime.addresses()["pod/default/n2-p1"] == ("10.244.2.2",)


# ---------------------------------------------------------------- those that misbehave


@pytest.mark.parametrize(
    ("plugin", "reason"),
    [
        ("hangs", f"plugin hangs, ADD: did not end within {PATIENCE:g} s and was killed"),
        ("crashes", "plugin crashes, ADD: was killed by SIGSEGV; its last words: panic: nil pointer"),
        ("garbage", "plugin garbage, ADD: printed what is no JSON: 'Configuring network... done!\\n'"),
        ("wrong-version", "plugin wrong-version, ADD: printed a result that is wrong: is of cniVersion '9.9.9'"),
        ("outdated", "plugin outdated speaks CNI 0.1.0, 0.2.0, and the list is of version 1.0.0"),
        ("silent", "plugin silent, ADD: ended well, but printed no result"),
        ("well-with-an-error", "plugin well-with-an-error, ADD: printed an error, but ended with status 0"),
        ("fails-without-words", "ended with status 1, without a CNI error on its output; its last words: Traceback"),
        ("floods", "plugin floods, ADD: printed more than 1048576 bytes and was killed"),
        ("no-such-plugin", "there is no CNI plugin 'no-such-plugin' in /usr/lib/cni or "),
    ],
)
def test_a_plugin_that_fails_is_told_apart_and_undone(make: Make, plugin: str, reason: str) -> None:
    bench = make(BRIDGE, {"type": plugin})
    begun = time.monotonic()
    with pytest.raises(PluginError) as error:
        bench.up()
    assert reason in error.value.message
    assert "pod default/n1-p1 on n1: " in error.value.message
    assert time.monotonic() - begun < 3 * PATIENCE + 10
    assert bench.runtime.problems() == []
    assert running("sleep") == []


def test_a_result_that_lies_is_contradicted_point_by_point(make: Make) -> None:
    bench = make(BRIDGE, {"type": "lies"}).up()
    (device,) = json.loads(bench.in_pod("ip -j link show eth0"))
    assert bench.texts("untruth") == [
        f"eth0 in the pod has the MAC {device['address']}, not 02:00:00:00:00:99",
        "there is no device veth-of-my-dreams in the node",
        "eth0 in the pod has 10.244.1.2/24, not 10.99.0.7/24",
        "the pod has no route 192.0.2.0/24 via 10.99.0.1",
        "eth0 in the pod has the address 10.244.1.2/24, which the result does not tell",
    ]


def test_what_del_leaves_behind_is_named(make: Make) -> None:
    bench = make(BRIDGE, {"type": "leaks"}).up()
    item = next(item for item in bench.plan if isinstance(item, CniAttachment))
    assert bench.runtime.problems() == []
    bench.remove_pods()
    left = [text.removeprefix("left behind after DEL: ") for text in bench.texts("leak")]
    short = item.container[:8]
    assert left[:3] == [f"device leak{short}", f"device x{short}", f"file /var/lib/cni/leaks/{item.container}"]
    assert left[3].startswith("rule ip filter FORWARD: ")
    assert left[4].startswith("process sleep (pid ")
    assert len(left) == 5


def test_a_child_that_keeps_standard_output_open_is_ended_and_reported(make: Make) -> None:
    bench = make(BRIDGE, {"type": "holds-stdout"}).up()
    (text,) = bench.texts("conduct")
    assert text.startswith("plugin holds-stdout, ADD: left sleep (pid ")
    assert running("sleep") == []


def test_a_del_that_fails_ends_there_and_shows_what_it_leaves(make: Make) -> None:
    bench = make(BRIDGE, {"type": "stuck-del"}).up()
    bench.remove_pods()
    (failure,) = bench.texts("failure")
    assert failure.startswith("plugin stuck-del, DEL: failed with code 11, try again later: the controller is away")
    assert failure.endswith("(DEL ends here, as with a container runtime: not called: bridge)")
    left = "\n".join(bench.texts("leak"))
    assert "device eth0 in the pod" in left
    assert "file /var/lib/cni/networks/testnet/10.244.1.2" in left
    assert "chain ip nat CNI-" in left


def test_complaints_of_check_status_and_gc_are_the_plugins_own_words(make: Make) -> None:
    bench = make(MINIMAL, {"type": "not-ready"}, version="1.1.0").up()
    item = next(item for item in bench.plan if isinstance(item, CniAttachment))
    assert bench.runtime.problems() == []
    assert bench.runtime.check()[0].complaints == ("plugin not-ready, CHECK: failed with code 100: a route is gone",)
    (status,) = bench.runtime.status()
    unavailable = "failed with code 50, the plugin is not available: no datapath"
    assert status.complaints == (f"plugin not-ready, STATUS: {unavailable}",)
    (garbage,) = bench.runtime.collect_garbage()
    (complaint,) = garbage.complaints
    assert json.dumps([{"containerID": item.container, "ifname": "eth0"}]) in complaint


def test_before_version_1_1_there_is_no_status_to_ask_for(make: Make) -> None:
    (finding,) = make(BRIDGE).up().runtime.status()
    assert finding == Finding("n1", skipped="the list is of CNI 1.0.0: STATUS came with 1.1.0")


def test_garbage_collection_deletes_what_the_cache_knows_and_nobody_holds(make: Make) -> None:
    bench = make(BRIDGE).up()
    item = next(item for item in bench.plan if isinstance(item, CniAttachment))
    ours, stale = (f"{RESULTS}/testnet-{container}-eth0" for container in (item.container, "f" * 64))
    # Its pod has gone, and its namespace with it.
    edit = f"s/{item.container}/{'f' * 64}/; s,/run/netns/default_n1-p1,,"
    bench.in_node(f"sed '{edit}' {ours} > {stale}")
    bench.in_node(f"printf '%s\\r\\neth0' {'f' * 64} > /var/lib/cni/networks/testnet/10.244.1.77")
    assert bench.runtime.collect_garbage()[0].complaints == ()
    assert "10.244.1.77" not in bench.in_node("ls /var/lib/cni/networks/testnet")
    assert bench.in_node("ls /var/lib/cni/results").split() == [f"testnet-{item.container}-eth0"]


def test_plugin_calls_are_logged(make: Make) -> None:
    bench = make(BRIDGE).up()
    log = bench.runtime.logs()["node/n1/cni"]
    assert "VERSION bridge" in log
    assert "ADD bridge default/n1-p1" in log


def test_results_are_cached_in_the_node_as_libcni_does(make: Make) -> None:
    bench = make(BRIDGE).up()
    item = next(item for item in bench.plan if isinstance(item, CniAttachment))
    cached = json.loads(bench.in_node(f"cat {RESULTS}/testnet-{item.container}-eth0"))
    assert cached["kind"] == "cniCacheV1"
    assert cached["result"]["ips"][0]["address"] == "10.244.1.2/24"
    assert ["K8S_POD_NAME", "n1-p1"] in cached["cniArgs"]
