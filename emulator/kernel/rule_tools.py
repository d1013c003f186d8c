"""The tools that load and print rules: ``iptables-restore``, ``nft``, ``ipset``. No shell sees any of the text."""

from __future__ import annotations

import fcntl
import os
import select
import struct
import subprocess
import termios
import threading
import time
from typing import IO

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


PAUSE_MS = 0.3  # between two looks at what a tool has left unread
_MORE = b"#\n"  # a comment, to iptables-restore


def load_rules(argv: tuple[str, ...], text: str, timeout: float = TIMEOUT) -> None:
    """Have a tool carry out ``text``. Raises what :func:`run_tool` raises."""
    if argv[0].endswith("tables-nft-restore"):
        _restore(argv, text, timeout)
    else:
        run_tool(argv, text, timeout)


def _restore(argv: tuple[str, ...], text: str, timeout: float) -> None:
    """Run ``iptables-nft-restore`` until its last ``COMMIT`` is in force, and do not wait for its end.

    When it closes its netlink socket the kernel waits until nobody can be using what the transaction replaced, 10 to
    30 ms (see :func:`emulator.kernel.netfilter_netlink.close_beside`): more than all the rest. The tool reads on only
    after it has carried out what it has read. So once it has taken the whole text, it is given one comment more; when
    that is taken, too, the rules are in force.
    """
    tool = subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={"PATH": PATH, "LC_ALL": "C"},
    )
    assert tool.stdin is not None
    assert tool.stderr is not None
    deadline = time.monotonic() + timeout
    try:
        done = _fed(tool, tool.stdin, text.encode(), deadline) and _fed(tool, tool.stdin, _MORE, deadline)
    except subprocess.TimeoutExpired:
        tool.kill()
        tool.communicate()
        raise
    if done:
        threading.Thread(target=tool.communicate, name="end-of-restore", daemon=True).start()
        return
    _, complaint = tool.communicate()
    raise subprocess.CalledProcessError(tool.returncode, argv, stderr=complaint.decode(errors="replace"))


def _fed(tool: subprocess.Popen[bytes], pipe: IO[bytes], data: bytes, deadline: float) -> bool:
    """Whether the tool took all of it; not, if it ended before. What it prints meanwhile is a line or two, which its
    pipe holds."""
    end = pipe.fileno()
    os.set_blocking(end, False)
    waiting = select.poll()
    waiting.register(end, select.POLLOUT)
    view = memoryview(data)
    while True:
        try:
            view = view[os.write(end, view) :] if view else view
        except BlockingIOError:
            waiting.poll(100)
        except BrokenPipeError:
            return False
        if not view:
            if tool.poll() is not None:
                return False
            if not _unread(end):
                return True
            time.sleep(PAUSE_MS / 1000)
        if time.monotonic() > deadline:
            raise subprocess.TimeoutExpired(tool.args, TIMEOUT)


def _unread(pipe: int) -> int:
    """How many bytes of a pipe nobody has read."""
    (number,) = struct.unpack("=i", fcntl.ioctl(pipe, termios.FIONREAD, b"\0" * 4))
    return int(number)
