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


@pytest.fixture
def real_suite(suite: pytest.Pytester) -> pytest.Pytester:
    """A test that needs a distribution's kernel, and one that any has enough for."""
    suite.makepyfile(
        TEST.replace("def test_delay", "@pytest.mark.real_kernel\ndef test_delay") + "def test_other(): ...\n"
    )
    (suite.path / "expected-features" / "real-kernel.txt").write_text("veth\nnetem\n")
    return suite


def test_what_needs_a_distributions_kernel_is_left_out_elsewhere_and_a_line_says_so(
    real_suite: pytest.Pytester,
) -> None:
    result = real_suite.runpytest_inprocess()

    result.assert_outcomes(passed=1, deselected=1)
    result.stdout.fnmatch_lines(
        ["1 test was left out: this machine lacks netem; run them by: sudo ./cnilab test --real-kernel"]
    )


def test_what_needs_a_distributions_kernel_runs_wherever_the_kernel_has_it(real_suite: pytest.Pytester) -> None:
    real_suite.makepyfile(
        "import pytest\n@pytest.mark.real_kernel\n@pytest.mark.requires('veth')\ndef test_it(): ...\n"
    )

    result = real_suite.runpytest_inprocess()

    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*left out*")


def test_what_the_real_kernel_lane_lacks_fails_there(
    real_suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CNILAB_LANE", "real-kernel")

    result = real_suite.runpytest_inprocess()

    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*lane real-kernel expects netem, and this machine lacks netem (No such file)*"])


def test_a_lane_that_is_known_to_have_a_feature_leaves_out_no_test_for_it(
    real_suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CNILAB_LANE", "full")

    real_suite.runpytest_inprocess().assert_outcomes(passed=1, errors=1)


def test_a_mark_with_a_misspelt_feature_stops_the_run(suite: pytest.Pytester) -> None:
    suite.makepyfile(TEST.replace("netem", "nettem"))

    result = suite.runpytest_inprocess()

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*requires nettem: not in emulator/kernel/features.py*"])


@pytest.mark.parametrize("lane", sorted(CONFTEST.parent.glob("expected-features/*.txt")), ids=lambda path: path.stem)
def test_lane_files_name_only_known_features(lane: Path) -> None:
    names = [line for line in lane.read_text().splitlines() if line and not line.startswith("#")]

    assert set(names) <= set(capabilities.feature_names())


def test_choosing_the_real_kernels_tests_imports_no_file_without_one(real_suite: pytest.Pytester) -> None:
    real_suite.makepyfile(test_elsewhere="raise RuntimeError('imported')")

    result = real_suite.runpytest_inprocess("-m", "real_kernel", "--collect-only", "-q")

    assert result.ret == 0
    result.stdout.fnmatch_lines(["*::test_delay", "1/2 tests collected*"])


def test_a_mark_that_such_a_choice_would_overlook_stops_the_run(real_suite: pytest.Pytester) -> None:
    real_suite.makepyfile("import pytest\n@getattr(pytest.mark, 'real' + '_kernel')\ndef test_hidden(): ...\n")

    result = real_suite.runpytest_inprocess()

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*::test_hidden is marked real_kernel, and its file does not have that word"])


def test_processes_share_long_files_by_style_or_theme_and_take_others_whole(suite: pytest.Pytester) -> None:
    names = ["a/1-x", "a/2-y", "b/1-x", "c-1"]
    test = f"import pytest\n@pytest.mark.parametrize('name', {names})\ndef test_{{}}(name): ...\n"
    kernel = suite.mkpydir("tests") / "kernel"
    kernel.mkdir()
    for name in ("other", "scenarios"):
        (kernel / f"test_{name}.py").write_text(test.format("one") + test.format("two"))

    lines = suite.runpytest("-n", "3", "--dist", "loadfile", "--no-loadscope-reorder", "-v").outlines

    found = [line.split() for line in lines if line.startswith("[gw") and "PASSED" in line]
    by_part: dict[str, set[str]] = {}
    for worker, *_, test_name in found:
        file, _, rest = test_name.partition("::")
        key = rest.partition("[")[2][0] if file.endswith("scenarios.py") else ""
        by_part.setdefault(f"{file} {key}", set()).add(worker)
    assert len(found) == 16
    assert {key.rpartition("/")[2]: len(workers) for key, workers in by_part.items()} == {
        "test_other.py ": 1, "test_scenarios.py a": 1, "test_scenarios.py b": 1, "test_scenarios.py c": 1,
    }  # fmt: skip
    assert len(set().union(*(each for key, each in by_part.items() if "scenarios" in key))) > 1
