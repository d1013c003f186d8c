"""DNS names in requests: looked up where the request starts, before it is sent, as a program there would.

The questions are packets of the lab: they pass its Services, its CNI, and whatever was broken on the way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from emulator.errors import UserError
from emulator.lab.machinery import Machinery
from emulator.lab.names import Place, common_address
from emulator.lab.records import Lookup, ProbeRequest

AT_ONCE = 16  # lookups side by side: each may wait 20 s for a server that is silent
BOTH = (4, 6)


class Way(NamedTuple):
    """From where to where a request goes. ``address`` is empty if the target's name could not be resolved."""

    source: Place
    target: Place
    address: str
    lookup: Lookup | None = None

    @property
    def why(self) -> str:
        """Why there is no address, for people."""
        if self.address or self.lookup is None:
            return ""
        found, asked = self.lookup, len(self.lookup.tried)
        if not found.failure:
            return f"{found.name} has no address of a family that {self.source.label} has"
        names = f"{asked} names" if asked != 1 else "1 name"
        return f"could not resolve {found.name}: {found.failure} ({names} tried, {found.questions} questions)"


def ways(machinery: Machinery, wanted: Sequence[tuple[Place, Place, ProbeRequest]]) -> list[Way]:
    """Source, target and address of each request. The same name is looked up once for all that ask for it from one
    place. Raises UserError where a place has nobody to ask, or the two ends no common family."""
    asked = {_key(*each): (each[0], each[1].name, _families(each[2])) for each in wanted if each[1].name}
    found: dict[tuple[str, str, int], Lookup] = {}
    if len(asked) == 1:
        found = {key: _look_up(machinery, *question) for key, question in asked.items()}
    elif asked:
        from concurrent.futures import ThreadPoolExecutor  # `up` must not wait for its import

        with ThreadPoolExecutor(AT_ONCE) as pool:
            answers = pool.map(lambda question: _look_up(machinery, *question), asked.values())
            found = dict(zip(asked, answers, strict=True))
    return [
        _way(source, target, request, found.get(_key(source, target, request))) for source, target, request in wanted
    ]


def _key(source: Place, target: Place, request: ProbeRequest) -> tuple[str, str, int]:
    return source.ns, target.name, request.family


def _families(request: ProbeRequest) -> tuple[int, ...]:
    return (request.family,) if request.family else BOTH


def _look_up(machinery: Machinery, source: Place, name: str, families: Sequence[int]) -> Lookup:
    found = machinery.resolve_name(source, name, families)
    if found.failure and not machinery.name_servers(source):
        raise UserError(
            f"{source.label} has no DNS server to ask for {name}",
            hint="cluster DNS comes with a lab's first Service, or at once with `cnilab up --dns on`",
        )
    return Lookup(name, found.addresses, found.failure, found.tried, found.questions, found.seconds)


def _way(source: Place, target: Place, request: ProbeRequest, lookup: Lookup | None) -> Way:
    if lookup is None:
        return Way(source, target, common_address(source, target, request.family))
    try:
        address = common_address(source, target._replace(addresses=lookup.addresses), request.family)
    except UserError:
        address = ""
    return Way(source, target, address, lookup)
