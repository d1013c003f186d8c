"""The ``lab`` fixture, as users' own tests see it."""

from __future__ import annotations

from pathlib import Path

import pytest

from emulator.kernel import registry

pytestmark = pytest.mark.requires("netns", "veth", "vxlan", "ip", "mnexec")

WEB = """
apiVersion: v1
kind: Pod
metadata: {name: web-0}
spec:
  containers: [{name: c, image: nginx, ports: [{containerPort: 80}]}]
"""


@pytest.fixture(autouse=True)
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(registry.BASE_VARIABLE, str(tmp_path / "labs"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    return tmp_path / "labs"


def test_manifests_are_tested_against_real_packets_in_a_lab_of_their_own(pytester: pytest.Pytester, base: Path) -> None:
    pytester.makefile(".yaml", web=WEB)
    pytester.makepyfile(
        """
        def test_web(lab):
            lab.apply("web.yaml")
            assert lab.probe("n1-p1", "web-0", 80).reached

        def test_next_lab_knows_nothing_of_it(lab):
            assert "web-0" not in [pod.name for pod in lab.cluster().pods]
            assert lab.status().style == "flannel"

        def test_that_fails(lab):
            assert not lab.probe("n1-p1", "n2-p1").reached
        """
    )
    pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(passed=2, failed=1)
    assert list(base.iterdir()) == []


@pytest.mark.requires("bird")
def test_marker_builds_the_lab_and_the_option_runs_it_per_style(pytester: pytest.Pytester, base: Path) -> None:
    pytester.makefile(".yaml", web=WEB)
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.lab(topology="single-node", manifests=["web.yaml"])
        def test_marked(lab):
            assert lab.probe("n1-p1", "web-0", 80).reached
            assert len(lab.cluster().nodes) == 1

        @pytest.mark.lab(topology="single-node", cni="flannel:host-gw")
        def test_of_one_style(lab):
            assert lab.status().style == "flannel:host-gw"
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-v", "--cnilab-cni", "flannel,calico")
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(["*test_marked?flannel?*", "*test_marked?calico?*", "*of_one_style?flannel:host-gw?*"])
    assert list(base.iterdir()) == []
