"""Which advice follows which refusal. The settings are faked: no machine has them all."""

from __future__ import annotations

import errno
import os

import pytest

from emulator.kernel import restrictions
from emulator.kernel.restrictions import explain

NAMESPACES = "make private namespaces"
MOUNTS = "make the lab's private mounts"


def refused(number: int, call: str = "unshare(0x7c020000)") -> OSError:
    return OSError(number, f"{call}: {os.strerror(number)}")


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    faked: dict[str, str] = {}
    monkeypatch.setattr(restrictions, "_setting", lambda path: faked.get(path, ""))
    return faked


@pytest.mark.parametrize(
    ("setting", "value", "error", "doing", "advice"),
    [
        (
            "kernel/unprivileged_userns_clone",
            "0",
            refused(errno.EPERM),
            NAMESPACES,
            "kernel.unprivileged_userns_clone=1",
        ),
        (
            "kernel/apparmor_restrict_unprivileged_userns",
            "1",
            refused(errno.EPERM, "mount none on /"),
            MOUNTS,
            "kernel.apparmor_restrict_unprivileged_userns=0",
        ),
        (
            "kernel/apparmor_restrict_unprivileged_userns",
            "1",
            PermissionError(errno.EACCES, "Permission denied", "/proc/self/uid_map"),
            NAMESPACES,
            "kernel.apparmor_restrict_unprivileged_userns=0",
        ),
        ("user/max_user_namespaces", "0", refused(errno.ENOSPC), NAMESPACES, "user.max_user_namespaces=15000"),
        ("user/max_pid_namespaces", "0", refused(errno.ENOSPC), NAMESPACES, "user.max_pid_namespaces=15000"),
    ],
)
def test_the_setting_that_refuses_is_named_with_its_remedy(
    settings: dict[str, str], setting: str, value: str, error: OSError, doing: str, advice: str
) -> None:
    settings[setting] = value
    said = explain(error, doing)
    assert said is not None
    message, hint = said
    assert message.startswith(f"cannot {doing}: ")
    assert f"`sudo sysctl {advice}`" in hint
    assert "\n" not in message + hint


@pytest.mark.parametrize(
    ("error", "doing", "advice"),
    [
        (refused(errno.EPERM, "mount proc on /proc"), MOUNTS, "systempaths=unconfined"),
        (refused(errno.EPERM, "mount sysfs on /sys"), MOUNTS, "systempaths=unconfined"),
        (refused(errno.EPERM), NAMESPACES, "seccomp"),
        (refused(errno.ENOSPC), NAMESPACES, "limit on namespaces"),
        (refused(errno.EINVAL), NAMESPACES, "lacks a kind of namespace"),
    ],
)
def test_without_a_setting_to_blame_the_likely_cause_is_named(
    settings: dict[str, str], error: OSError, doing: str, advice: str
) -> None:
    said = explain(error, doing)
    assert said is not None
    assert advice in said[1]


def test_an_error_that_is_no_refusal_gets_no_advice(settings: dict[str, str]) -> None:
    assert explain(FileNotFoundError(errno.ENOENT, "No such file or directory", "/x"), MOUNTS) is None
