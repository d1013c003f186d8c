"""Which distribution this is, and what its packages are called: for hints only, never to decide what works."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

INSTALL = {
    "debian": "sudo apt-get install --no-install-recommends",
    "fedora": "sudo dnf install",
}


@dataclass(frozen=True)
class Distribution:
    """``family`` is ``debian`` (with Ubuntu), ``fedora`` (with RHEL) or empty; ``title`` is for people."""

    id: str
    family: str
    title: str

    def install_hint(self, packages: Mapping[str, str]) -> str:
        """The command that installs a program, whose package is named per family."""
        package = packages.get(self.family)
        return f"{INSTALL[self.family]} {package}" if package else ""

    def kernel_hint(self, release: str, loads_modules: bool) -> str:
        """Where a kernel feature may come from that this kernel, called ``release``, does not have."""
        if not loads_modules:
            return "this kernel was built without it: boot a distribution's own"
        if self.id == "ubuntu":
            # On cloud kernels netem, vrf and others are packaged apart (actions/runner-images issue 7587).
            return f"{INSTALL['debian']} linux-modules-extra-{release}"
        if self.id == "debian" and "cloud" in release:
            return f"{INSTALL['debian']} linux-image-{'arm64' if release.endswith('arm64') else 'amd64'}, then reboot"
        if self.family == "fedora":
            return f"{INSTALL['fedora']} kernel-modules-extra"
        return ""


@cache
def current() -> Distribution:
    """The distribution that /etc/os-release names."""
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        return Distribution("", "", os.uname().sysname)
    names = {release.get("ID", ""), *release.get("ID_LIKE", "").split()}
    family = "debian" if names & {"debian", "ubuntu"} else "fedora" if names & {"fedora", "rhel", "centos"} else ""
    return Distribution(release.get("ID", ""), family, release.get("PRETTY_NAME", "Linux"))
