"""Where the distribution's programs are, and of which version."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

# Not on a user's PATH on Debian; tc, nft, iptables and bird are there.
SYSTEM_FOLDERS = ("/usr/local/sbin", "/usr/sbin", "/sbin")

VERSION_TIMEOUT = 10.0  # seconds; wireshark's programs take one


def search_path() -> str:
    """PATH with the folders of the system programs at its end."""
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    return os.pathsep.join([*folders, *(folder for folder in SYSTEM_FOLDERS if folder not in folders)])


def find(executable: str) -> str | None:
    """The path of a program, or None."""
    return shutil.which(executable, path=search_path())


def version(path: str, arguments: tuple[str, ...]) -> str:
    """The version that a program tells when called like this, or "" where it tells none."""
    if not arguments:
        return ""
    try:
        done = subprocess.run(
            [path, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=VERSION_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    # "ip utility, iproute2-6.1.0, libbpf 1.1.0", "BIRD version 2.0.12", "nftables v1.0.6 (Lester Gooch #5)"
    found = re.search(r"\d+\.\d+(?:\.\d+)*", done.stdout + done.stderr)
    return found.group() if found else ""


def older(found: str, least: str) -> bool:
    """Whether a version is older than another, number by number. Empty ones are never older."""

    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(".") if part]

    return bool(found and least) and numbers(found) < numbers(least)
