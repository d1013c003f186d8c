"""``@pytest.mark.sandbox``: run a test, with its fixtures, in a private sandbox that dies afterwards.

The test runs in a fork of pytest, so it finds everything imported; set-up, call and tear-down happen inside, and the
reports (tracebacks, skips, captured output) come back as they are. Fixtures of a wider scope than the function that
exist already are those of the outside. ``@pytest.mark.sandbox(timeout=120)`` allows more than 60 seconds.
"""

from __future__ import annotations

from typing import Any

import pytest
from _pytest.runner import runtestprotocol

from emulator.errors import SandboxError, Unsupported
from emulator.kernel.sandbox import call_forked


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "sandbox(timeout=60): run the test in private namespaces of its own")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    marker = item.get_closest_marker("sandbox")
    if marker is None:
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in _reports(item, nextitem, marker.kwargs.get("timeout", 60.0)):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    item.session._setupstate.teardown_exact(nextitem)  # what earlier tests of this process had set up for this one
    return True


def _reports(item: pytest.Item, nextitem: pytest.Item | None, timeout: float) -> list[pytest.TestReport]:
    hook = item.config.hook

    def run() -> list[dict[str, Any] | None]:
        reports = runtestprotocol(item, nextitem=nextitem, log=False)
        return [hook.pytest_report_to_serializable(config=item.config, report=report) for report in reports]

    try:
        return [
            hook.pytest_report_from_serializable(config=item.config, data=data) for data in call_forked(run, timeout)
        ]
    except Unsupported as error:
        path, line, _ = item.location
        return [_report(item, "skipped", (path, line or 0, f"Skipped: {error.message}; {error.hint}"))]
    except SandboxError as error:
        return [_report(item, "failed", f"{error.message}\n{error.__cause__ or ''}")]


def _report(item: pytest.Item, outcome: Any, longrepr: Any) -> pytest.TestReport:
    return pytest.TestReport(item.nodeid, item.location, {item.name: 1}, outcome, longrepr, "call")
