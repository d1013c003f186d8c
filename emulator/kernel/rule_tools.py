"""The tools that load and print rules: ``iptables-restore``, ``nft``, ``ipset``. No shell sees any of the text."""

from __future__ import annotations

import subprocess

PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
TIMEOUT = 60.0  # seconds for one tool; a thousand rules take well under one


def run_tool(argv: tuple[str, ...], text: str, timeout: float = TIMEOUT) -> str:
    """Run a tool with ``text`` on its standard input, and return what it prints.

    Raises OSError if it cannot be started, subprocess.CalledProcessError (``stderr`` says why) or TimeoutExpired.
    """
    done = subprocess.run(
        argv,
        input=text,
        text=True,
        check=True,
        capture_output=True,
        timeout=timeout,
        env={"PATH": PATH, "LC_ALL": "C"},
    )
    return done.stdout
