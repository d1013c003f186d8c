"""What ``ipset restore`` reads: sets that come, their members that come and go, and sets that go."""

from __future__ import annotations

import re

from emulator.errors import ApplyError
from emulator.plan.describe import describe
from emulator.plan.model import IpSet

# Whatever ipset reads as one word: weave-npc's names have most of the printable characters in them
_SAFE_MEMBER = re.compile(r"[0-9A-Za-z.:/,_(){}\[\]+=$%^!*|?;@#~-]+")


def set_text(item: IpSet) -> str:
    """Make the set under another name, fill it, and swap: a packet never meets a half-filled set."""
    _check_words(item)
    made = _made(item)
    scratch = f"{item.name[:27]}-new"  # names have at most 31 characters (IPSET_MAXNAMELEN)
    lines = [
        f"create {item.name} {made} -exist",
        f"create {scratch} {made} -exist",
        f"flush {scratch}",
        *(f"add {scratch} {member}" for member in item.members),
        f"swap {scratch} {item.name}",
        f"destroy {scratch}",
    ]
    return "\n".join(lines) + "\n"


def fresh_text(item: IpSet) -> str:
    """Make a set that nothing refers to yet, and that is not there: refused otherwise."""
    _check_words(item)
    members = "".join(f"add {item.name} {member} -exist\n" for member in item.members)
    return f"create {item.name} {_made(item)}\n{members}"


def _made(item: IpSet) -> str:
    kind = item.type.partition(" ")[0]
    family = "inet" if item.family == 4 else "inet6"
    return item.type if kind.startswith(("bitmap:port", "list:")) else f"{item.type} family {family}"


def coming_text(item: IpSet, old: IpSet) -> str:
    """Add the members that ``old`` has not; one that has other options than before takes them on."""
    _check_words(item)
    before = set(old.members)
    return "".join(f"add {item.name} {member} -exist\n" for member in item.members if member not in before)


def going_text(item: IpSet, old: IpSet) -> str:
    """Delete the members that only ``old`` has."""
    entries = {member.partition(" ")[0] for member in item.members}
    gone = (member.partition(" ")[0] for member in old.members)
    return "".join(f"del {item.name} {entry} -exist\n" for entry in gone if entry not in entries)


def _check_words(item: IpSet) -> None:
    """Raise ApplyError for what ipset would not read as one word, or for an unknown option of a member."""
    words = [item.name, *item.type.split(" ")]
    for member in item.members:
        entry, _, options = member.partition(" ")
        words.append(entry)
        if options not in ("", "nomatch"):
            raise ApplyError(f"failed to load {describe(item)}: {member!r} is no set member")
    for word in words:
        if not _SAFE_MEMBER.fullmatch(word) or word.startswith("-"):
            raise ApplyError(f"failed to load {describe(item)}: {word!r} is no set name or member")
