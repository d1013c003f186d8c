"""What BIRD says of its BGP sessions, asked on its control socket as ``birdc show protocols all`` does.

::

    1002-Mesh_192_168_50_12 BGP        ---        start  14:02:11.301  Connect
    1006-  BGP state:          Connect
    1006-    Neighbor address: 192.168.50.12
    1006-    Last error:       Socket: Connection refused
    1006-    Routes:         1 imported, 1 exported, 1 preferred

A line begins with a code of four digits, or with a blank if its code is that of the line before; a blank behind the
code says that the answer ends there.

Sources: BIRD 2.0 user's guide (remote control), ``nest/cli.c``, ``proto/bgp/bgp.c`` (bgp_show_proto_info).
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator

import msgspec

from emulator.errors import DaemonError
from emulator.kernel.namespaces import MachineHandle, within

TIMEOUT = 5.0  # seconds for an answer
LARGEST = 4 * 1024 * 1024  # bytes: some thousand sessions
PROTOCOL, DETAIL = 1002, 1006  # codes of lines: a protocol in brief, and in full

_ROUTES = re.compile(r"(\d+) (imported|exported)")


class SessionState(msgspec.Struct, frozen=True, omit_defaults=True):
    """A BGP session at one end. ``state`` is BIRD's word: Established, Passive, Connect, Active, OpenSent, OpenConfirm,
    Idle, Close, Down. ``error`` is the last error, empty if there was none; the numbers count routes."""

    protocol: str
    neighbour: str
    state: str
    error: str = ""
    imported: int = 0
    exported: int = 0


def sessions(machine: MachineHandle, path: str) -> list[SessionState]:
    """The sessions of the BIRD that listens on ``path`` in a machine. Raises DaemonError if none answers."""
    return read_sessions(within(machine, lambda: _ask(path, "show protocols all")))


def _ask(path: str, command: str) -> str:
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(TIMEOUT)
            client.connect(path)
            greeting = client.makefile("r", encoding="utf-8", errors="replace")
            greeting.readline()
            client.sendall(f"{command}\n".encode())
            text: list[str] = []
            size = 0
            for line in greeting:
                text.append(line)
                size += len(line)
                if size > LARGEST:
                    raise DaemonError(f"BIRD on {path} does not stop talking")
                if line[:4].isdigit() and line[4:5] == " ":
                    break
            return "".join(text)
    except OSError as error:
        raise DaemonError(f"BIRD does not answer on {path}: {error.strerror or error}") from error


def read_sessions(answer: str) -> list[SessionState]:
    """The BGP sessions in an answer to ``show protocols all``."""
    found: list[SessionState] = []
    for block in _blocks(answer):
        words = block[0].split()
        if len(words) < 2 or words[1] != "BGP":
            continue
        fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in block[1:])}
        counts = {"imported": 0, "exported": 0}
        for line in block[1:]:
            if line.strip().startswith("Routes:"):
                for number, kind in _ROUTES.findall(line):
                    counts[kind] += int(number)
        found.append(
            SessionState(
                protocol=words[0],
                neighbour=fields.get("Neighbor address", "").partition("%")[0],
                state=fields.get("BGP state", ""),
                error=fields.get("Last error", ""),
                imported=counts["imported"],
                exported=counts["exported"],
            )
        )
    return found


def _blocks(answer: str) -> Iterator[list[str]]:
    """The lines of each protocol, the one in brief first."""
    block: list[str] = []
    code = 0
    for line in answer.splitlines():
        if line[:4].isdigit():
            code, text = int(line[:4]), line[5:]
        else:
            text = line[1:]
        if code == PROTOCOL:
            if block:
                yield block
            block = [text]
        elif code == DETAIL and block:
            block.append(text)
    if block:
        yield block
