"""``cnilab probe``: does one place reach another?"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import click

from emulator.cli import options, output
from emulator.cli.connection import connect

FROM_TO = "FROM TO[:PORT]"


def request_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """What `probe` and `trace` both take."""
    for decorate in (
        click.option("--family", type=click.Choice(["4", "6"]), default=None, help="Use IPv4 or IPv6."),
        click.option("--dont-fragment", is_flag=True, help="Set DF: too large packets are refused, not split."),
        click.option("--timeout", type=click.FloatRange(0.001, 60), default=1.0, show_default=True, help="Seconds."),
        click.option("--size", type=click.IntRange(0, 1_000_000), default=0, help="Payload bytes."),
        click.option("--protocol", type=click.Choice(["icmp", "tcp", "udp", "sctp"]), default=None,
                     help="Default: a Service's own; else tcp if there is a port, or icmp."),
        click.argument("target", metavar="TO[:PORT]", shell_complete=options.complete_places),
        click.argument("source", metavar="FROM", shell_complete=options.complete_places),
    ):  # fmt: skip
        function = decorate(function)
    return function


def request(
    source: str, target: str, protocol: str | None, size: int, timeout: float, dont_fragment: bool, family: str | None,
    **more: Any,
) -> Any:  # fmt: skip
    """The options as a ProbeRequest."""
    from emulator.lab import ProbeRequest
    from emulator.lab.names import split_port

    name, port = split_port(target)
    return ProbeRequest(
        source=source, target=name, port=port, protocol=protocol or "", size=size,  # type: ignore[arg-type]
        timeout=timeout, dont_fragment=dont_fragment, family=int(family or 0), **more,
    )  # fmt: skip


@click.command("probe")
@request_options
@click.option("--count", type=click.IntRange(1, 10_000), default=1, show_default=True, help="Requests to send.")
@options.lab
@options.as_json
def command(count: int, lab: str | None, as_json: bool, **wish: Any) -> None:
    """Send a request FROM a pod or machine TO another, and say what came back.

    Exit status 0 if it was answered, 1 if it was refused, unreachable, or met with silence.
    """
    found = connect(lab)
    asked = request(count=count, **wish)
    with output.progress(f"probing {asked.target} from {asked.source}"):
        answer = found.probes([asked])[0]
    if as_json:
        output.print_json(answer)
    else:
        click.echo(describe(answer))
    raise click.exceptions.Exit(0 if answer.reached else 1)


def describe(answer: Any) -> str:
    """One line for people."""
    result = answer.result
    port = f":{answer.port}" if answer.port else ""
    address = f"{answer.address or '?'}{port}" if answer.address or port else "?"
    text = f"{answer.source} → {answer.target} ({address}, {answer.protocol}): {result.verdict}"
    if result.answered_by:
        text += f" by {result.answered_by}"
    if result.source_seen:
        text += f", which saw {result.source_seen}"
    if result.sent > 1:
        text += f", {result.received} of {result.sent} answered"
    if result.times:
        text += f", {statistics.median(result.times) / 1000:.2f} ms"
    if result.detail:
        text += f" ({result.detail})"
    return text
