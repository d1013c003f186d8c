from __future__ import annotations

import io
from collections.abc import Callable
from types import ModuleType

import msgspec
import pytest
from rich.console import Console

from emulator.capture.model import Hop, Journey, Packet, Reason
from emulator.compare.comparison import Comparison
from emulator.report.terminal import print_comparison, print_hops

Compared = Callable[[str], Comparison]


def printed(comparison: Comparison, width: int = 100, **options: bool) -> str:
    out = io.StringIO()
    print_comparison(comparison, Console(file=out, width=width, highlight=False), **options)
    return out.getvalue()


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("name", ["two_styles", "ipv6", "racks"])
def test_no_line_is_wider_than_the_terminal(compared: Compared, name: str, width: int) -> None:
    assert max(map(len, printed(compared(name), width, hops=True).splitlines())) <= width


def test_a_file_gets_plain_text(compared: Compared) -> None:
    assert "\x1b" not in printed(compared("two_styles"), hops=True)


def test_only_rows_that_differ_are_marked(compared: Compared) -> None:
    comparison = msgspec.structs.replace(compared("two_styles"), flows=compared("two_styles").flows[:1])
    lines = printed(comparison).splitlines()
    marked = [line for line in lines if line.startswith("≠")]
    assert any("device traversals" in line for line in marked)
    assert not any("routed hops" in line or "median" in line for line in marked)


def test_warnings_come_first(compared: Compared) -> None:
    first = printed(compared("racks")).splitlines()[0]
    assert first.startswith("✗ Flannel · vxlan: the capture lost 12 packets")


def test_terminal_escapes_in_names_are_shown_not_obeyed(compared: Compared) -> None:
    out = io.StringIO()
    console = Console(file=out, width=100, highlight=False, force_terminal=True, color_system=None)
    print_comparison(compared("hostile"), console, hops=True)
    assert "\x1b[31m" not in out.getvalue()
    assert "\\x1b[31m" in out.getvalue()


def test_an_ascii_terminal_gets_ascii(compared: Compared) -> None:
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii")
    print_comparison(compared("two_styles"), Console(file=out, width=80, highlight=False), hops=True)
    out.flush()
    assert b"10.244.1.2 -> 10.244.2.2" in raw.getvalue()


def test_a_lost_packet_says_where_it_was_last_seen(compared: Compared) -> None:
    assert "✗ last seen here: dropped" in printed(compared("two_styles"), hops=True)


def test_one_packet_is_printed_hop_by_hop(synthetic: ModuleType) -> None:
    out = io.StringIO()
    journey = synthetic.walk(synthetic.flannel_vxlan(synthetic.echo("10.244.1.2", "10.244.2.2")))
    print_hops(journey, Console(file=out, width=120), title="a → b", ending="delivered")
    lines = out.getvalue().splitlines()
    hops = [line.split() for line in lines if line[:2].strip().isdigit()]
    assert len(hops) == 12
    assert "63*" in hops[3]
    assert "+50*" in hops[4]
    assert "vxlan vni 1: 192.168.50.11 → 192.168.50.12, ttl 64, udp 41691 → 8472" in out.getvalue()
    assert "pods of n2 are behind its VTEP" in out.getvalue()


def test_long_addresses_go_to_a_line_of_their_own(compared: Compared) -> None:
    text = printed(compared("ipv6"), 80, hops=True)
    assert "fd00:10:244:1:a:b:c:1002 → fd00:10:244:2:ffff:eeee:dddd:2002\n" in text


def test_ports_are_told_where_a_packet_is_translated_and_both_rules_that_did_it() -> None:
    def packet(source: str, source_port: int, target: str, target_port: int, ttl: int) -> Packet:
        return Packet("", "", 74, "tcp", 4, source, target, ttl, source_port=source_port, target_port=target_port)

    rules = (
        Reason("KUBE-SEP-X rule 2", "kube-proxy", "default/web: this endpoint was chosen"),
        Reason("KUBE-POSTROUTING rule 3", "kube-proxy", "service traffic requiring SNAT"),
        Reason("route", "kernel", ""),
    )
    journey = Journey(
        1,
        (
            Hop(0, 0, "host/client", "eth0", "out", packet("203.0.113.7", 4000, "192.168.50.11", 30080, 64)),
            Hop(1, 1, "node/n1", "eth0", "out", packet("192.168.50.11", 5000, "10.244.2.2", 8080, 63), (), rules),
        ),
    )
    console = Console(file=(out := io.StringIO()), width=140)

    print_hops(journey, console=console)

    text = out.getvalue()
    assert "203.0.113.7:4000 → 192.168.50.11:30080" in text
    assert "192.168.50.11:5000 → 10.244.2.2:8080*" in text
    assert "this endpoint was chosen" in text
    assert "requiring SNAT" in text


def test_where_a_column_a_style_has_no_room_values_are_listed_with_styles_and_reasons(compared: Compared) -> None:
    comparison = msgspec.structs.replace(compared("two_styles"), flows=compared("two_styles").flows[:1])
    flow = comparison.flows[0]
    assert any(cell.because for row in flow.rows if row.differs for cell in row.cells)
    lines = [line.strip() for line in printed(comparison, 50).splitlines()]
    row = next(row for row in flow.rows if row.differs)
    start = next(number for number, line in enumerate(lines) if line.startswith(f"≠ {row.label}"))
    assert lines[start + 1] in {cell.value for cell in row.cells}
    assert lines[start + 2] in {column.column.key for column in flow.columns}
