"""Bad input through every command that takes some: a clear message, exit status 2, and nothing left behind."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from emulator.kernel import registry

pytestmark = pytest.mark.requires("netns", "veth", "vxlan", "ip", "mnexec")

CNILAB = [sys.executable, "-c", "from emulator.cli import main; main()"]

TOPOLOGY = """\
name: t
podCIDRs: [10.244.0.0/16]
serviceCIDRs: [10.96.0.0/12]
pods: 1
switches: [{name: s1, cidrs: [192.168.50.0/24]}]
nodes: [{name: n1, switch: s1}, {name: n2, switch: s1}]
routers: [{name: tor, switch: s1}]
"""
POD = """\
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  containers: [{name: c, image: x}]
"""
DEPLOYMENT = """\
apiVersion: apps/v1
kind: Deployment
metadata: {name: many}
spec:
  replicas: 300
  selector: {matchLabels: {app: many}}
  template:
    metadata: {labels: {app: many}}
    spec:
      containers: [{name: c, image: x}]
"""

BAD_TOPOLOGIES = {
    "malformed YAML": ("nodes: [", "flannel", "topology.yaml"),
    "not a mapping": ("- just\n- a list\n", "flannel", "topology.yaml"),
    "wrong type": (TOPOLOGY.replace("pods: 1", "pods: many"), "flannel", "pods"),
    "unknown field": (TOPOLOGY + "colour: red\n", "flannel", "colour"),
    "duplicate name": (TOPOLOGY.replace("{name: n2", "{name: n1"), "flannel", "n1"),
    "overlapping CIDRs": (TOPOLOGY.replace("10.96.0.0/12", "10.244.128.0/20"), "flannel", "overlap"),
    "name with a path": (TOPOLOGY.replace("{name: n2", "{name: ../../x"), "flannel", "../../x"),
    "name with a command": (TOPOLOGY.replace("{name: n2", "{name: a;reboot"), "flannel", "a;reboot"),
    "tunnel that does not fit": (TOPOLOGY + "links: [{from: n1, to: s1, mtu: 100}]\n", "flannel", "mtu"),
    "MTU too small for the tunnel's IPv6": (
        TOPOLOGY.replace("10.244.0.0/16]", '10.244.0.0/16, "fd00:10:244::/56"]')
        .replace("10.96.0.0/12]", '10.96.0.0/12, "fd00:10:96::/112"]')
        .replace("192.168.50.0/24]", '192.168.50.0/24, "fd00:50::/64"], mtu: 1300'),
        "flannel", "MTU",
    ),
    "a range that is full": (
        TOPOLOGY.replace("10.244.0.0/16", "10.244.0.0/28").replace("pods: 1", "pods: 9"), "calico", "10.244.0.0/28",
    ),
}  # fmt: skip
BAD_MANIFESTS = {
    "malformed YAML": ("kind: {", "web.yaml"),
    "wrong type": (POD.replace("[{name: c, image: x}]", "seven"), "spec.containers"),
    "duplicate name": (f"{POD}---\n{POD}", "uplicate"),
    "name with a path": (POD.replace("{name: web,", "{name: ../../x,"), "../../x"),
    "name with a command": (POD.replace("{name: web,", "{name: a;reboot,"), "a;reboot"),
    "label with a quote": (POD.replace("{app: web}", """{app: 'we"b'}"""), "metadata.labels"),
    "label with a newline": (POD.replace("{app: web}", '{app: "we\\nb"}'), "metadata.labels"),
    "label with an escape": (POD.replace("{app: web}", '{app: "\\e[31mred"}'), "metadata.labels"),
    "container name with a path": (POD.replace("{name: c,", "{name: ../c,"), "spec.containers[0].name"),
    "unknown namespace": (POD.replace("{name: web,", "{name: web, namespace: nowhere,"), "nowhere"),
    "unknown node": (POD.replace("spec:", "spec:\n  nodeName: n99"), "n99"),
    "more pods than the nodes take": (DEPLOYMENT.replace("300", "3000"), "Too many pods"),
    "a node": (POD.replace("kind: Pod", "kind: Node").split("spec:")[0], "Node"),
}

# What a machine that needs more than a second says meanwhile
PROGRESS = r"(?m)^(?!error: )\w.* \(\d+\.\d s\)\n"


@pytest.fixture(scope="module", autouse=True)
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    patch = pytest.MonkeyPatch()
    path = tmp_path_factory.mktemp("labs")
    patch.setenv(registry.BASE_VARIABLE, str(path))
    yield path
    patch.undo()


def cnilab(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(
        [*CNILAB, *map(str, arguments)], capture_output=True, text=True, timeout=60, cwd=cwd, env=env,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip


def assert_refused(done: subprocess.CompletedProcess[str], *names: str) -> None:
    assert done.returncode == 2, done.stderr
    assert re.sub(PROGRESS, "", done.stderr).startswith("error: "), done.stderr
    assert all(name in done.stderr for name in names), done.stderr
    assert "Traceback" not in done.stderr
    assert "internal error" not in done.stderr
    assert all(char.isprintable() or char == "\n" for char in done.stderr), "control characters reach the terminal"
    assert done.stdout == ""


def processes() -> list[str]:
    """Of labs that were started under this base directory."""
    marker = f"{registry.BASE_VARIABLE}={os.environ[registry.BASE_VARIABLE]}".encode()
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/environ", "rb") as file:
                if int(entry) != os.getpid() and marker in file.read().split(b"\0"):
                    found.append(entry)
        except OSError:
            continue
    return found


def assert_nothing_left(base: Path) -> None:
    assert list(base.iterdir()) == []
    deadline = time.monotonic() + 2  # a launcher that has been waited for may still be seen by others
    while (left := processes()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert left == []


@pytest.mark.parametrize("verb", ["up", "plan"])
@pytest.mark.parametrize("case", BAD_TOPOLOGIES)
def test_bad_topology_is_refused_and_leaves_nothing(case: str, verb: str, base: Path, tmp_path: Path) -> None:
    text, style, name = BAD_TOPOLOGIES[case]
    path = tmp_path / "topology.yaml"
    path.write_text(text)
    assert_refused(cnilab(verb, path, "--cni", style), name)
    assert_nothing_left(base)


@pytest.mark.parametrize("case", [name for name in BAD_MANIFESTS if name != "a node"])
def test_bad_manifest_is_refused_by_up_and_leaves_nothing(case: str, base: Path, tmp_path: Path) -> None:
    text, name = BAD_MANIFESTS[case]
    path = tmp_path / "web.yaml"
    path.write_text(text)
    assert_refused(cnilab("up", "single-node", "-f", path), name)
    assert_nothing_left(base)


@pytest.mark.parametrize("name", ["../../x", "a;reboot", "", "-x", "A", "x" * 64, "a\nb", "a b"])
def test_lab_cannot_have_such_a_name(base: Path, name: str) -> None:
    assert_refused(cnilab("up", "single-node", f"--lab={name}"))
    assert list(base.iterdir()) == []


def test_scenario_with_mistakes_is_refused_before_anything_runs(base: Path, tmp_path: Path) -> None:
    for number, text in enumerate(("steps: [", "name: x\nsteps: seven\n", "name: ../../x\nsteps: []\n")):
        path = tmp_path / f"s{number}.yaml"
        path.write_text(text)
        assert_refused(cnilab("run", path, "--out", tmp_path / "out"), f"s{number}.yaml")
    assert_refused(cnilab("run", "../../etc/passwd", "--out", tmp_path / "out"))
    assert_refused(cnilab("run", "connectivity/same-node", "--cni", "flannel,nonesuch", "--out", tmp_path / "out"))
    assert list(base.iterdir()) == []
    assert not (tmp_path / "out").exists()


class TestRunningLab:
    """The same through a lab that runs: it stays as it is."""

    @pytest.fixture(scope="class", autouse=True)
    @staticmethod
    def lab(base: Path) -> Iterator[None]:
        assert cnilab("up", "single-node").returncode == 0
        yield
        assert cnilab("down").returncode == 0
        assert list(base.iterdir()) == []

    @staticmethod
    def state() -> tuple[str, Sequence[str]]:
        status = json.loads(cnilab("status", "--verify", "--json").stdout)
        return cnilab("get", "pods", "-A", "-o", "json").stdout, status["differences"]

    @pytest.mark.parametrize("case", BAD_MANIFESTS)
    def test_bad_manifest_is_refused_by_apply_and_changes_nothing(self, case: str, tmp_path: Path) -> None:
        text, name = BAD_MANIFESTS[case]
        good = POD.replace("{name: web,", "{name: good,")
        (tmp_path / "good.yaml").write_text(good)
        (tmp_path / "web.yaml").write_text(text)
        before = self.state()
        assert_refused(cnilab("apply", "-f", tmp_path / "good.yaml", "-f", tmp_path / "web.yaml"), name)
        assert self.state() == before
        assert before[1] == []

    @pytest.mark.parametrize(
        "arguments",
        [
            ("probe", "../../x", "client"),
            ("probe", "a;reboot", "client"),
            ("probe", "n1-p1", "client:99999"),
            ("probe", "n1-p1", "client", "--protocol", "tcp"),
            ("trace", "n1-p1", "nobody"),
            ("exec", "../../x", "--", "true"),
            ("logs", "nobody"),
            ("delete", "pod", "nobody"),
            ("delete", "namespace", "default"),
            ("delete", "node", "n1"),
            ("get", "nonsense"),
            ("get", "pod", "../../x"),
            ("get", "pods", "-l", "a b c"),
            ("capture", "n1:nonesuch", "--seconds", "1"),
            ("up", "single-node"),
            ("down", "nobody"),
        ],
        ids=" ".join,
    )
    def test_request_that_cannot_be_honoured_is_refused(self, arguments: Sequence[str], tmp_path: Path) -> None:
        assert_refused(cnilab(*arguments, cwd=tmp_path))
        assert list(tmp_path.iterdir()) == []
