"""Marks that skip a test where this machine cannot run it, and the check that such skips do not hide anything.

``@pytest.mark.requires("netem", "bird")`` names entries of emulator.kernel.features. The environment variable
CNILAB_LANE names a file of expected-features/: what the machines of that lane are known to have. There, a test that
would be skipped for a feature of that file fails instead.

``@pytest.mark.real_kernel`` marks what only a distribution's kernel with all its modules can show. In the lane
real-kernel (``./cnilab test --real-kernel``) these tests run, come what may. Elsewhere they run where the kernel has
what they require; otherwise they are left out, and a line at the end says so.

Where several processes share the tests out (``--dist loadfile``), the longest files come first, so that none is left
when all others are done, and those that have one lab after the other may have them in several processes.
"""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from emulator.kernel import capabilities

LANE_FILES = Path(__file__).parent / "expected-features"
SANDBOX_NEEDS = ("netns", "veth", "ip", "mnexec")
REAL_KERNEL = "real-kernel"  # the lane
REAL_KERNEL_MARK = "real_kernel"
# A minute and more each. The rest is in the order of its names, which has the short ones (unit/) at the end.
LONGEST = (
    "tests/kernel/test_scenarios.py",
    "tests/docs/test_examples.py",
    "tests/kernel/test_policy_corner_cases.py",
    "tests/kernel/test_policy_felix.py",
    "tests/kernel/test_policy_fuzz.py",
    "tests/kernel/test_policy_commands.py",
    "tests/kernel/test_proxy_iptables_lab.py",
)
# The parameters begin with a style or a back end, which has a lab of its own, or with a scenario's theme:
# test_it[theme/name-style]
PARTED = tuple(name for name in LONGEST if "/kernel/" in name)
ANSWERS = pytest.StashKey[dict[str, capabilities.Feature]]()  # this machine's, for what the tests of this run need
LEFT_OUT = pytest.StashKey[dict[str, list[str]]]()  # tests that need another kernel, and the features that they miss


@cache
def expected_features() -> frozenset[str]:
    """What this lane's machines have; nothing outside a lane."""
    lane = os.environ.get("CNILAB_LANE", "")
    if not lane:
        return frozenset()
    lines = (LANE_FILES / f"{lane}.txt").read_text(encoding="utf-8").splitlines()
    return frozenset(line.strip() for line in lines if line.strip() and not line.startswith("#"))


def required(item: pytest.Item) -> list[str]:
    """The features that a test's marks name, in their order."""
    names = [name for mark in item.iter_markers("requires") for name in mark.args]
    if item.get_closest_marker("sandbox"):
        names += SANDBOX_NEEDS
    return list(dict.fromkeys(names))


def rank(file: str) -> int:
    return LONGEST.index(file) if file in LONGEST else len(LONGEST)


def part(test: str) -> str:
    """What of the tests one process has to take as a whole: a file, or of some those of a style or a theme."""
    file, _, name = test.partition("::")
    parameters = name.partition("[")[2]
    return f"{file}[{re.split('[-/]', parameters)[0]}" if file in PARTED and parameters else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    if config.option.dist != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped]

    scheduler = LoadFileScheduling(config, log)
    scheduler._split_scope = part  # what xdist's own schedulers of this kind differ by
    return scheduler


@cache
def names_the_real_kernel(path: Path) -> bool:
    return REAL_KERNEL_MARK in path.read_text(encoding="utf-8")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With ``-m real_kernel``, files without that word are not even imported: under emulation that takes minutes."""
    chosen = config.option.markexpr == REAL_KERNEL_MARK
    return True if chosen and collection_path.is_file() and not names_the_real_kernel(collection_path) else None


@pytest.hookimpl(trylast=True)  # after -k and -m have chosen
def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    known = set(capabilities.feature_names())
    for item in items:
        unknown = [name for name in required(item) if name not in known]
        if unknown:
            raise pytest.UsageError(f"{item.nodeid} requires {', '.join(unknown)}: not in emulator/kernel/features.py")
        if item.get_closest_marker(REAL_KERNEL_MARK) and not names_the_real_kernel(item.path):
            raise pytest.UsageError(f"{item.nodeid} is marked {REAL_KERNEL_MARK}, and its file does not have that word")
    items.sort(key=lambda item: rank(item.nodeid.partition("::")[0]))
    if config.option.collectonly:
        return
    # All at once and before the first test: a test with a sandbox runs in a fork, whose answers would be lost.
    answers = capabilities.probe_for_use(sorted({name for item in items for name in required(item)}))
    session.stash[ANSWERS] = answers
    if os.environ.get("CNILAB_LANE") == REAL_KERNEL:
        return
    left_out: dict[str, list[str]] = {}
    for item in items:
        missing = [name for name in required(item) if not answers[name].usable]
        # What the lane is known to have may not be missing: that test fails, like any other.
        if item.get_closest_marker(REAL_KERNEL_MARK) and missing and not expected_features() & set(missing):
            left_out[item.nodeid] = missing
    config.stash[LEFT_OUT] = left_out
    if left_out:
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid in left_out])
        items[:] = [item for item in items if item.nodeid not in left_out]


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):  # one of several processes (xdist): another one reports
        session.config.workeroutput["left_out"] = session.config.stash.get(LEFT_OUT, {})


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:  # in the process that reports
    node.config.stash[LEFT_OUT] = getattr(node, "workeroutput", {}).get("left_out", {})


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    left_out = config.stash.get(LEFT_OUT, {})
    if left_out:
        missing = sorted({name for names in left_out.values() for name in names})
        tests = "1 test was" if len(left_out) == 1 else f"{len(left_out)} tests were"
        terminalreporter.write_line(
            f"{tests} left out: this machine lacks {', '.join(missing)}; run them by: sudo ./cnilab test --real-kernel"
        )


def pytest_runtest_setup(item: pytest.Item) -> None:
    answers = item.session.stash[ANSWERS]
    missing = [answers[name] for name in required(item) if not answers[name].usable]
    if not missing:
        return
    said = "; ".join(f"{one.name} ({one.detail})" for one in missing)
    surprise = [one.name for one in missing if one.name in expected_features()]
    if surprise:
        pytest.fail(
            f"lane {os.environ['CNILAB_LANE']} expects {', '.join(surprise)}, and this machine lacks {said}",
            pytrace=False,
        )
    pytest.skip(f"missing {said}")
