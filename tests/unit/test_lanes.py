"""The marks of tests/conftest.py: skips name what is missing, and in a lane a surprise skip is a failure."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pytest

from emulator.kernel import capabilities

CONFTEST = Path(__file__).parents[1] / "conftest.py"

TEST = """
import pytest

@pytest.mark.requires("veth", "netem")
def test_delay():
    pass
"""


@pytest.fixture
def without_netem(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has everything else."""

    def probe(names: Collection[str]) -> dict[str, capabilities.Feature]:
        return {
            name: capabilities.Feature(
                name, "no" if name == "netem" else "yes", "No such file" if name == "netem" else ""
            )
            for name in names
        }

    monkeypatch.setattr(capabilities, "probe_for_use", probe)


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, without_netem: None) -> pytest.Pytester:
    monkeypatch.delenv("CNILAB_LANE", raising=False)
    pytester.makeconftest(CONFTEST.read_text(encoding="utf-8"))
    pytester.makeini(
        "[pytest]\nmarkers =\n    requires(*features): needs\n    sandbox: needs\n    real_kernel: needs\n"
        "addopts = --import-mode=importlib --strict-markers"
    )
    lanes = pytester.mkdir("expected-features")
    (lanes / "small.txt").write_text("# comment\nveth\n")
    (lanes / "full.txt").write_text("veth\nnetem\n")
    return pytester


def test_outside_a_lane_a_test_is_skipped_and_the_missing_feature_named(suite: pytest.Pytester) -> None:
    suite.makepyfile(TEST)

    result = suite.runpytest_inprocess("-rs")

    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*missing netem (No such file)*"])


def test_in_a_lane_that_does_not_expect_the_feature_the_test_is_skipped(
    suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CNILAB_LANE", "small")
    suite.makepyfile(TEST)

    suite.runpytest_inprocess().assert_outcomes(skipped=1)


def test_in_a_lane_that_expects_the_feature_the_skip_is_a_failure(
    suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CNILAB_LANE", "full")
    suite.makepyfile(TEST)

    result = suite.runpytest_inprocess()

    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*lane full expects netem, and this machine lacks netem (No such file)*"])


def test_a_test_whose_features_are_all_there_runs(suite: pytest.Pytester) -> None:
    suite.makepyfile(TEST.replace(', "netem"', ""))

    suite.runpytest_inprocess().assert_outcomes(passed=1)


def test_a_lane_without_a_file_stops_the_run(suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CNILAB_LANE", "no-such-lane")
    suite.makepyfile(TEST)

    result = suite.runpytest_inprocess()

    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*no-such-lane.txt*"])


def test_a_mark_with_a_misspelt_feature_stops_the_run(suite: pytest.Pytester) -> None:
    suite.makepyfile(TEST.replace("netem", "nettem"))

    result = suite.runpytest_inprocess()

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*requires nettem: not in emulator/kernel/features.py*"])


@pytest.mark.parametrize("lane", sorted(CONFTEST.parent.glob("expected-features/*.txt")), ids=lambda path: path.stem)
def test_lane_files_name_only_known_features(lane: Path) -> None:
    names = [line for line in lane.read_text().splitlines() if line and not line.startswith("#")]

    assert set(names) <= set(capabilities.feature_names())
