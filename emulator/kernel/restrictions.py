"""Why this machine refuses a private sandbox, and what its owner can do about it.

Nothing here is asked before the kernel has said no: a setting proves nothing, an errno does. Settings only tell
which of the known reasons it was.

- ``user.max_user_namespaces`` = 0 (some hardening guides): unshare says ENOSPC
- ``kernel.unprivileged_userns_clone`` = 0 (a Debian patch, off since Debian 11): unshare says EPERM
- ``kernel.apparmor_restrict_unprivileged_userns`` = 1 (Ubuntu 23.10 and later): unshare works, but the new namespace
has no
  capabilities, so that writing uid_map or the first mount says EPERM or EACCES
- seccomp (Docker's and Podman's default profile): unshare says EPERM
- parts of /proc or /sys masked (containers): mounting fresh ones says EPERM (mount_too_revealing in fs/namespace.c)
"""

from __future__ import annotations

import errno
import os

_LIMITS = ("user", "net", "mnt", "pid", "uts", "ipc")


def explain(error: OSError, doing: str) -> tuple[str, str] | None:
    """The message and the hint for a refusal met while ``doing`` something, or None if the error is not one of
    these.
    """
    reason = f"cannot {doing}: {error.strerror or error}"
    if error.errno in (errno.ENOSPC, errno.EUSERS):
        return _limit(reason)
    if error.errno == errno.EINVAL and doing.endswith("namespaces"):
        return (
            reason,
            "this kernel lacks a kind of namespace; cnilab needs net, mount, pid, uts and ipc, and user unless root",
        )
    if error.errno not in (errno.EPERM, errno.EACCES):
        return None
    if _setting("kernel/unprivileged_userns_clone") == "0":
        return reason, _turn("kernel.unprivileged_userns_clone", "1")
    if _setting("kernel/apparmor_restrict_unprivileged_userns") == "1":
        return reason, _turn("kernel.apparmor_restrict_unprivileged_userns", "0")
    if "mount proc" in reason or "mount sysfs" in reason:
        return reason, (
            "a container hides parts of /proc or /sys, and the kernel then allows no fresh ones: start it with "
            "--privileged, or with --security-opt systempaths=unconfined"
        )
    return reason, (
        "something above this process forbids user namespaces (a container's seccomp profile, a chroot, "
        "a security module): use sudo, a virtual machine, or a container started with --privileged"
    )


def _limit(reason: str) -> tuple[str, str]:
    for kind in _LIMITS:
        if _setting(f"user/max_{kind}_namespaces") == "0":
            return reason, _turn(f"user.max_{kind}_namespaces", "15000")
    return reason, "the limit on namespaces is reached, or they are nested 32 deep: see /proc/sys/user and end some"


def _turn(setting: str, value: str) -> str:
    old = _setting(setting.replace(".", "/"))
    way = f"allow it with `sudo sysctl {setting}={value}`"
    return f"{setting} is {old} here: {way}" + ("" if os.geteuid() == 0 else ", or use sudo")


def _setting(path: str) -> str:
    try:
        with open(f"/proc/sys/{path}") as file:
            return file.read().strip()
    except OSError:
        return ""
