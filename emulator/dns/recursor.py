"""The resolver outside the cluster: what the nodes' own resolv.conf names, and CoreDNS forwards to.

In a real network it is the company's or the provider's recursive resolver, with the internet behind it. A lab has no
internet: the topology's ``dns.records`` are all that there is, and every other name is NXDOMAIN.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from emulator.dns.records import AS_ASKED, Answer, Labels, Record, Soa, labels_of
from emulator.dns.reverse import canonical, reverse_name

TTL = 300  # seconds, of every record
NEGATIVE_TTL = 300  # seconds for which NXDOMAIN may be believed
CHAIN = 8  # CNAMEs in a row


class Directory:
    """Names with what they stand for: addresses, or one other name."""

    def __init__(self, records: Mapping[str, Sequence[str]]) -> None:
        self._records: dict[Labels, tuple[str, ...]] = {}
        self._above: set[Labels] = {()}
        self._pointers: dict[Labels, dict[str, None]] = {}
        for name, values in records.items():
            labels = labels_of(name)
            self._records[labels] = tuple(values)
            self._above.update(labels[start:] for start in range(1, len(labels)))
            for value in values:
                if address := canonical(value):
                    self._pointers.setdefault(labels_of(reverse_name(address)), {})[name.rstrip(".")] = None

    def lookup(self, labels: Labels, kind: str) -> Answer:
        """The answer to a question for a name in lower case."""
        if pointers := self._pointers.get(labels):
            rows = tuple(Record(AS_ASKED, "PTR", TTL, name) for name in pointers) if kind == "PTR" else ()
            return Answer(answer=rows, authoritative=False) if rows else self._nothing()
        found: list[Record] = []
        seen: list[Labels] = []
        while True:
            owner = ".".join(labels) if seen else AS_ASKED
            values = self._records.get(labels)
            if values is None:
                if labels in self._above or found:
                    return Answer(answer=tuple(found), authoritative=False) if found else self._nothing()
                return Answer("NXDOMAIN", authority=(self._soa(),), authoritative=False)
            aliases = [value for value in values if not canonical(value)]
            if not aliases or kind == "CNAME":
                wanted = [(kind, value) for value in aliases] if kind == "CNAME" else _of_kind(values, kind)
                found += [Record(owner, what, TTL, value) for what, value in wanted]
                return Answer(answer=tuple(found), authoritative=False) if found else self._nothing()
            seen.append(labels)
            found.append(Record(owner, "CNAME", TTL, aliases[0].rstrip(".")))
            labels = labels_of(aliases[0])
            if labels in seen or len(seen) >= CHAIN:
                return Answer("SERVFAIL", authoritative=False)

    def _nothing(self) -> Answer:
        return Answer(authority=(self._soa(),), authoritative=False)

    @staticmethod
    def _soa() -> Record:
        """The root zone's, as a resolver hands on where there is no closer one."""
        return Record(
            ".", "SOA", NEGATIVE_TTL, Soa("ns.upstream", "hostmaster.upstream", 1, 7200, 1800, 86400, NEGATIVE_TTL)
        )


def _of_kind(values: Sequence[str], kind: str) -> list[tuple[str, str]]:
    return [(kind, address) for address in map(canonical, values) if kind == ("AAAA" if ":" in address else "A")]
