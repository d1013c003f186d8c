from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulator.errors import ScenarioError
from emulator.traffic.expression import LAYERS, Layer, parse


def test_layers_keep_their_order_and_arguments() -> None:
    assert parse('IP(dst="10.0.0.2", ttl=3) / UDP(dport=53) / b"hi"') == Layer(
        "IP",
        (("dst", "10.0.0.2"), ("ttl", 3)),
        Layer("UDP", (("dport", 53),), Layer("Raw", (("load", b"hi"),))),
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("UDP(sport=0x1F90)", 8080),
        ("UDP(sport=-1)", -1),
        ("UDP(sport=[1, 2])", [1, 2]),
        ("UDP(sport=(1, 9))", (1, 9)),
        ("UDP(sport=1 | 4)", 5),
        ("UDP(sport=None)", None),
        ("UDP(sport=True)", True),
        ('UDP(sport="a" * 3 + "b")', "aaab"),
        ('UDP(sport=b"\\x00" * 2)', b"\0\0"),
        ('UDP(sport=DNSQR(qname="a"))', Layer("DNSQR", (("qname", "a"),))),
        ('UDP(sport=DNSQR(qname="a") / DNSQR())', Layer("DNSQR", (("qname", "a"),), Layer("DNSQR"))),
    ],
)
def test_literals_are_read(text: str, value: object) -> None:
    assert parse(text).arguments == (("sport", value),)


def test_text_as_payload_is_utf8() -> None:
    assert parse('IP() / "häh"').payload == Layer("Raw", (("load", "häh".encode()),))


@pytest.mark.parametrize(
    "text",
    [
        '__import__("os").system("id")',
        'IP(dst=__import__("os").getcwd())',
        "IP.__class__",
        "IP().__class__.__bases__",
        "().__class__.__bases__[0].__subclasses__()",
        "open('/etc/passwd')",
        "eval('1')",
        "exec('1')",
        "print(1)",
        "IP(dst=open)",
        "IP(dst=dst)",
        "lambda: IP()",
        "(lambda: IP())()",
        "[IP() for _ in range(9)]",
        "IP(dst=[x for x in (1,)])",
        "IP(ttl=1 if True else 2)",
        "IP(ttl=(x := 3))",
        'IP(dst=f"{1}")',
        "IP(**{'dst': 1})",
        "IP(*[1])",
        "IP('10.0.0.1')",
        "IP(_pkt=b'x')",
        "IP(__class__=1)",
        "IP(dst='a'.upper())",
        "IP(dst='a'[0])",
        "IP(dst={'a': 1})",
        "IP(dst={1})",
        "IP(ttl=1 + 1)",
        "IP(ttl=2 ** 99999999)",
        "IP(ttl=9 * 9)",
        "IP(ttl=not 1)",
        "IP(ttl=~1)",
        "IP(ttl=1j)",
        "IP(ttl=...)",
        "IP(ttl=-'a')",
        "IP(dst='a' * 99999999)",
        "IP(dst='a' * -1)",
        "IP(dst='%s' % 1)",
        "IP(ttl=1, ttl=2)",
        "IP(ttl=RandShort())",
        "Evil()",
        "send(IP())",
        "IP() / UDP() / 5",
        "IP() / None",
        "IP() // UDP()",
        "IP() and UDP()",
        "IP() < UDP()",
        "5",
        "IP",
        "",
        "   ",
        "IP(",
        "IP()\nUDP()",
        "IP(); UDP()",
        "import os",
        "IP() / (yield)",
        "await IP()",
        "IP(" * 3000 + ")" * 3000,
        "(" * 300 + "IP()" + ")" * 300,
        "IP() / " * 200 + "IP()",
        "IP(ttl=" + "[" * 80 + "]" * 80 + ")",
        "IP(ttl=" + "-" * 500 + "1)",
        "IP(ttl=" + "9" * 5000 + ")",
        "IP(dst='" + "a" * 30_000 + "')",
        "IP(dst='\0')\0",
        'IP() / "\\ud800"',
    ],
)
def test_whatever_is_no_packet_is_refused(text: str) -> None:
    with pytest.raises(ScenarioError):
        parse(text)


def test_refusal_names_the_file_the_step_and_the_part() -> None:
    with pytest.raises(ScenarioError) as caught:
        parse('IP(dst=__import__("os").getcwd(), ttl=3)', "evil.yaml", "step 2")
    (problem,) = caught.value.problems
    assert (problem.source, problem.subject) == ("evil.yaml", "step 2")
    assert problem.path == '__import__("os").getcwd'
    assert "only layers can be called" in problem.reason


_values = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(0, 2**64), st.text("abc\"'\\\n", max_size=9), st.binary(max_size=9)
    ),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=6,
)


@given(
    st.lists(st.tuples(st.sampled_from(sorted(LAYERS)), st.dictionaries(st.sampled_from("abc"), _values)), min_size=1)
)
def test_what_was_written_is_what_is_read(layers: list[tuple[str, dict[str, object]]]) -> None:
    text = " / ".join(
        f"{name}({', '.join(f'{key}={value!r}' for key, value in fields.items())})" for name, fields in layers
    )
    if len(layers) > 40:
        return
    found: Layer | None = parse(text)
    for name, fields in layers:
        assert found is not None
        assert (found.name, found.arguments) == (name, tuple(fields.items()))
        found = found.payload
    assert found is None


@given(st.text(st.sampled_from("IPUDPTCRaw()[]{}=/,.*+-|'\"b01 \\_:;\n"), max_size=60))
def test_any_text_is_a_packet_or_a_scenario_error(text: str) -> None:
    try:
        assert isinstance(parse(text), Layer)
    except ScenarioError:
        pass


@given(st.text(max_size=60))
def test_any_unicode_is_a_packet_or_a_scenario_error(text: str) -> None:
    try:
        parse(text)
    except ScenarioError:
        pass
