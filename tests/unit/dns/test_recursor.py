from __future__ import annotations

from emulator.dns.records import Answer, labels_of
from emulator.dns.recursor import Directory

DIRECTORY = Directory(
    {
        "example.com": ("203.0.113.80", "2001:db8::80"),
        "www.example.com": ("example.com",),
        "ring.example": ("ring.example",),
        "loose.example": ("nobody.example",),
        "deep.under.example.org": ("203.0.113.9",),
    }
)


def ask(name: str, kind: str = "A") -> Answer:
    return DIRECTORY.lookup(labels_of(name), kind)


def told(answer: Answer) -> list[tuple[str, str, object]]:
    return [(record.owner, record.kind, record.data) for record in answer.answer]


def test_addresses_by_family() -> None:
    assert told(ask("example.com")) == [("", "A", "203.0.113.80")]
    assert told(ask("example.com", "AAAA")) == [("", "AAAA", "2001:db8::80")]
    assert not ask("example.com").authoritative


def test_aliases_are_followed() -> None:
    assert told(ask("www.example.com")) == [("", "CNAME", "example.com"), ("example.com", "A", "203.0.113.80")]
    assert told(ask("www.example.com", "CNAME")) == [("", "CNAME", "example.com")]
    assert told(ask("loose.example")) == [("", "CNAME", "nobody.example")]
    assert ask("ring.example").rcode == "SERVFAIL"


def test_what_is_not_there_does_not_exist_and_what_is_above_does() -> None:
    assert ask("nobody.example").rcode == "NXDOMAIN"
    above = ask("under.example.org")
    assert (above.rcode, above.answer, above.authority[0].kind) == ("NOERROR", (), "SOA")
    assert (ask("example.com", "MX").rcode, ask("example.com", "MX").answer) == ("NOERROR", ())


def test_addresses_lead_back() -> None:
    assert told(ask("80.113.0.203.in-addr.arpa", "PTR")) == [("", "PTR", "example.com")]
