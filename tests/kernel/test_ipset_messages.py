"""Members of sets told to the kernel by messages of our own are what they are when ipset tells them."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator

import pytest

from emulator.kernel import ipset_messages
from emulator.kernel.namespaces import create, release
from emulator.kernel.netns import netns_path
from emulator.kernel.syscalls import inside

pytestmark = [pytest.mark.sandbox, pytest.mark.requires("ipset", "ipset-program")]

OURS, THEIRS = "pod/default/ours", "pod/default/theirs"
SETS = """\
create addresses hash:ip family inet timeout 0
create networks hash:net family inet
create networks6 hash:net family inet6
create ports hash:ip,port family inet
create ports6 hash:ip,port family inet6
create lists list:set
add addresses 10.244.1.9
add networks 10.0.0.0/8
add networks 10.1.0.0/16 nomatch
add ports 10.244.1.9,tcp:80
"""
CHANGES = """\
add addresses 10.244.1.2 -exist
add addresses 10.244.1.2 -exist
del addresses 10.244.1.9 -exist
del addresses 10.244.1.9 -exist
add networks 192.168.0.0/16 -exist
add networks 192.168.7.0/24 nomatch -exist
add networks 172.16.0.1 -exist
del networks 10.1.0.0/16 -exist
add networks6 fd00:10:244::/56 -exist
add networks6 fd00:10:244:1::/64 nomatch -exist
add networks6 fd00::7 -exist
add ports 10.244.1.2,udp:53 -exist
add ports 10.244.1.2,sctp:9999 -exist
del ports 10.244.1.9,tcp:80 -exist
add ports6 fd00:10:244:1::2,tcp:65535 -exist
"""
MADE = """\
create fresh hash:ip timeout 0 family inet
create fresh6 hash:net family inet6
create large hash:net maxelem 1048576 family inet
create fresh-ports hash:ip,port family inet6
"""
FOR_IPSET = (
    "add lists addresses -exist",
    "add networks 10.0.0.0/8",
    "create a hash:ip",
    "create a bitmap:port range 0-65535",
    "create a hash:ip family inet maxelem 5",
    "flush networks",
    "add ports 10.0.0.1,80 -exist",
)


@pytest.fixture
def places() -> Iterator[None]:
    create([(OURS, ()), (THEIRS, ())], lambda _: None)
    for place in (OURS, THEIRS):
        ipset(place, "restore", text=SETS)
    yield
    release(OURS)
    release(THEIRS)


def ipset(place: str, *words: str, text: str = "") -> str:
    with inside(netns_path(place)):
        done = subprocess.run(["ipset", *words], input=text, capture_output=True, text=True, check=True)
    return done.stdout


def saved(place: str) -> list[str]:
    """The kernel's members; their order is a hash's, whose key is random."""
    return sorted(line for line in ipset(place, "save").splitlines() if line.startswith("add "))


def committed(*lines: str) -> bool:
    with inside(netns_path(OURS)):
        return ipset_messages.commit(lines)


def test_members_are_what_ipset_makes_of_the_same_lines(places: None) -> None:
    assert committed(*CHANGES.splitlines())
    ipset(THEIRS, "restore", text=CHANGES)
    assert saved(OURS) == saved(THEIRS)
    assert "add networks 192.168.7.0/24 nomatch" in saved(OURS)


def listed(place: str) -> list[str]:
    """The sets with their types, revisions and options, but for what is random."""
    lines = ipset(place, "list", "-t").splitlines()
    return [re.sub(r"initval \S+", "", line) for line in lines if not line.startswith(("Size", "References"))]


def test_sets_come_and_go_as_if_ipset_had_made_them(places: None) -> None:
    examples = {"hash:ip": "addresses", "hash:net": "networks", "hash:ip,port": "ports"}
    with inside(netns_path(OURS)):
        assert ipset_messages.commit([*MADE.splitlines(), "add fresh 10.0.0.7 -exist", "destroy lists"], None, examples)
    ipset(THEIRS, "restore", text=f"{MADE}add fresh 10.0.0.7\ndestroy lists\n")
    assert sorted(listed(OURS)) == sorted(listed(THEIRS))
    assert "Name: fresh-ports" in listed(OURS)
    assert "Name: lists" not in listed(OURS)
    assert saved(OURS) == saved(THEIRS)


def test_a_set_is_left_to_ipset_where_none_of_its_type_is_known(places: None) -> None:
    assert not committed("create fresh hash:ip family inet")
    with inside(netns_path(OURS)):
        assert not ipset_messages.commit(["create fresh hash:ip family inet"], None, {"hash:ip": "nonesuch"})
        assert not ipset_messages.commit(["create addresses hash:ip family inet"], None, {"hash:ip": "addresses"})


@pytest.mark.parametrize("line", FOR_IPSET)
def test_what_only_ipset_knows_is_declined_and_nothing_is_done(places: None, line: str) -> None:
    before = saved(OURS)
    assert not committed("add addresses 10.244.1.2 -exist", line)
    assert saved(OURS) == before


@pytest.mark.parametrize(
    "line", ["add nonesuch 10.0.0.1 -exist", "add networks fd00::/64 -exist", "add networks 10.0.0.0/77 -exist"]
)
def test_what_the_kernel_refuses_is_left_to_ipset_and_its_words(places: None, line: str) -> None:
    assert not committed(line)
