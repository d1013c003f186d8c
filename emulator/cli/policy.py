"""``cnilab policy``: who reaches whom, by packets, beside what network policies say of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

import click

from emulator.cli import options, output

if TYPE_CHECKING:
    from emulator.lab.verdicts import Cell, Group, MatrixWish, PortWish
    from emulator.policy.enforcer import PolicyMode
    from emulator.report.junit import Suite
    from emulator.scenario.assertions import Outcome
    from emulator.scenario.policy_explain import Explanation
    from emulator.scenario.policy_labs import Checked, PolicyLab

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]
_PORT = re.compile(r"([0-9]{1,5})(?:/(tcp|udp|sctp))?|icmp")


@click.group("policy")
def command() -> None:
    """Show who reaches whom under network policies, by packets, and why.

    Each command works on a running lab, or with manifests on a private one that ends with it.
    """


def _where(function: Callable[..., Any]) -> Callable[..., Any]:
    """A running lab, or what a private one is made of."""
    decorators: tuple[Decorator, ...] = (
        click.option("--cni", "styles", default="", metavar="STYLE,...", shell_complete=options.complete_styles,
                     help="Private labs of these styles; `all` for every mode of each. Default: calico."),
        click.option("--topology", default="three-nodes", show_default=True, help="Topology of private labs."),
        options.proxies,
        options.policy_mode,
        options.lab,
    )  # fmt: skip
    for decorate in reversed(decorators):
        function = decorate(function)
    return function


def _whom(function: Callable[..., Any]) -> Callable[..., Any]:
    """Which places and ports a matrix is of."""
    decorators: tuple[Decorator, ...] = (
        click.option("--from", "sources", multiple=True, metavar="PLACE", help="Only from here; may be repeated."),
        click.option("--to", "targets", multiple=True, metavar="PLACE", help="Only to here; may be repeated."),
        click.option("--port", "ports", multiple=True, metavar="PORT[/PROTOCOL]",
                     help="Port to ask, or icmp; may be repeated. Default: those of containers and policies."),
        click.option("-n", "--namespace", "namespaces", multiple=True, metavar="NAMESPACE",
                     help="Only pods of this namespace; may be repeated."),
        click.option("--patient", is_flag=True, help="Wait a second for every answer, not only for doubtful ones."),
    )  # fmt: skip
    for decorate in reversed(decorators):
        function = decorate(function)
    return function


@command.command("matrix")
@click.argument("manifests", nargs=-1, metavar="[MANIFEST]...")
@_where
@_whom
@click.option("--all", "everyone", is_flag=True, help="Nodes, hosts outside the cluster and Services, too.")
@options.as_json
def matrix(
    manifests: tuple[str, ...], styles: str, topology: str, proxies: str, policy_mode: PolicyMode, lab: str | None,
    sources: tuple[str, ...], targets: tuple[str, ...], ports: tuple[str, ...], namespaces: tuple[str, ...],
    patient: bool, everyone: bool, as_json: bool,
) -> None:  # fmt: skip
    """Print the table of who reaches whom, for each port: `.` allowed, `X` dropped, `R` refused.

    Without MANIFESTS of a running lab; with them of private labs, one of each style.
    """
    from emulator.report.matrix import table_text

    wish = _wish(sources, targets, ports, namespaces, patient, everyone=everyone)
    found = _taken(manifests, styles, topology, proxies, policy_mode, lab, wish)
    if as_json:
        output.print_json([row for checked in found for row in _rows(checked)])
        return
    for number, checked in enumerate(found):
        if number:
            click.echo()
        if len(found) > 1 or manifests:
            click.echo(f"{_heading(checked)}:")
        click.echo(table_text(checked.matrix))
        _tell_notes(checked)


@command.command("check")
@click.argument("manifests", nargs=-1, metavar="[MANIFEST]...")
@_where
@_whom
@click.option("--strict", is_flag=True, help="Known deviations of a style fail, too.")
@click.option("--junit", "junit", metavar="FILE", type=click.Path(dir_okay=False), help="Write JUnit XML, too.")
@options.as_json
def check(
    manifests: tuple[str, ...], styles: str, topology: str, proxies: str, policy_mode: PolicyMode, lab: str | None,
    sources: tuple[str, ...], targets: tuple[str, ...], ports: tuple[str, ...], namespaces: tuple[str, ...],
    patient: bool, strict: bool, junit: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Hold what packets do against what the API says, under each style; print the differences.

    Every pod, node and host asks every pod, node, host and Service. Exit status 1 if packets did what neither the API
    nor a known deviation of the style explains.
    """
    from emulator.report.junit import write_junit

    wish = _wish(sources, targets, ports, namespaces, patient, everyone=True)
    refused: list[tuple[str, str]] = []
    found = _taken(manifests, styles, topology, proxies, policy_mode, lab, wish, refused=refused)
    failed = [one for one in found if one.wrong or (strict and one.deviating)]
    if junit:
        _write(lambda path: write_junit([_suite(one, strict=strict) for one in found], path), junit)
    if as_json:
        output.print_json({
            "styles": [{**_summary(one), "differences": [_row(one, cell) for cell in (*one.wrong, *one.deviating)]}
                       for one in found],
            "refused": [{"style": style, "why": why} for style, why in refused],
        })  # fmt: skip
    else:
        for one in found:
            _print_check(one)
        for style, why in refused:
            click.echo(f"{style}: not checked: {why}")
    raise click.exceptions.Exit(1 if failed or (refused and not found) else 0)


@command.command("explain")
@click.argument("source", metavar="FROM", shell_complete=options.complete_places)
@click.argument("target", metavar="TO:PORT", shell_complete=options.complete_places)
@options.manifests
@_where
@click.option(
    "--protocol",
    type=click.Choice(["icmp", "tcp", "udp", "sctp"]),
    default=None,
    help="Default: tcp if there is a port, else icmp; or PORT/udp.",
)
@click.option("--family", type=click.Choice(["4", "6"]), default=None, help="Use IPv4 or IPv6.")
@options.as_json
def explain(
    source: str, target: str, manifests: tuple[str, ...], styles: str, topology: str, proxies: str,
    policy_mode: PolicyMode, lab: str | None, protocol: Literal["icmp", "tcp", "udp", "sctp"] | None,
    family: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Say why FROM reaches TO, or does not: which policy, which rule of which chain, on which machine.

    Exit status 0 if the request was let in, 1 if not.
    """
    from emulator.lab.verdicts import Ask
    from emulator.scenario.assertions import parse_aim
    from emulator.scenario.policy_explain import explain_request

    place, port, spoken = parse_aim(target)
    wanted = cast(Literal[0, 4, 6], int(family or 0))
    ask = Ask(source, place, protocol or spoken, 0 if protocol == "icmp" else port, wanted)
    found = []
    for held in _labs(manifests, styles, topology, proxies, policy_mode, lab, hosts=False):
        with output.progress(f"asking under {held.style}"):
            found.append(explain_request(held.lab, ask, held.style))
    if as_json:
        output.print_json(found)
    else:
        for number, one in enumerate(found):
            if number:
                click.echo()
            _print_explanation(one)
    raise click.exceptions.Exit(0 if all(one.cell.allowed for one in found) else 1)


def _print_explanation(one: Explanation) -> None:
    from emulator.report.matrix import observed, reasons, request
    from emulator.report.terminal import print_hops

    cell = one.cell
    known = f"; known deviation: {cell.deviation.what}" if cell.deviation is not None and not cell.wrong else ""
    wrong = "" if cell.as_specified or known else "; NOTHING EXPLAINS THE DIFFERENCE"
    click.echo(f"{request(cell)}: {observed(cell)} under {one.style}{f' ({one.enforcer})' if one.enforcer else ''}")
    click.echo(f"  the API says {cell.specification}{known}{wrong}")
    for line in reasons(cell):
        click.echo(f"    {line}")
    if one.stopped is not None:
        stopped = one.stopped
        handle = f" (handle {stopped.handle})" if stopped.handle else ""
        verb = "rejected" if stopped.action == "reject" else "dropped"
        click.echo(f"  {verb} on {stopped.ns} at {stopped.hook}: {stopped.place}{handle}")
        click.echo(f"    {stopped.text}")
        if stopped.why:
            click.echo(f"    {stopped.component}: {stopped.why}")
        for place, line in one.records:
            click.echo(f"    on record at {place}: {line}")
    elif not cell.allowed:
        where = "the packet was never seen" if one.journey is None else one.journey.verdict
        click.echo(f"  no rule of the plan is known to have stopped it: {where}")
    if one.journey is not None:
        print_hops(one.journey)
    output.labels(one.warnings)


@command.command("test")
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path(dir_okay=False))
@options.manifests
@_where
@click.option("--junit", "junit", metavar="FILE", type=click.Path(dir_okay=False), help="Write JUnit XML, too.")
@options.as_json
def test(
    files: tuple[str, ...], manifests: tuple[str, ...], styles: str, topology: str, proxies: str,
    policy_mode: PolicyMode, lab: str | None, junit: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Check assertions such as `client -> web:80 allow` by packets.

    Exit status 1 if one does not hold; 2 if a line cannot be read, or names nobody.
    """
    from emulator.report.junit import write_junit
    from emulator.scenario.assertions import check_assertions, load_assertions

    given = [(path, load_assertions(path)) for path in files]
    results: list[tuple[str, str, Outcome]] = []
    for held in _labs(manifests, styles, topology, proxies, policy_mode, lab, hosts=False):
        with output.progress(f"asking {held.style}"):
            for path, assertions in given:
                results += [(held.style, path, one) for one in check_assertions(held.lab, assertions, path)]
        output.labels(held.labels)
    if junit:
        _write(lambda path: write_junit(_test_suites(results), path), junit)
    if as_json:
        output.print_json([
            {"style": style, "file": path, "line": one.assertion.line, "assertion": one.assertion.text,
             "met": one.met, **_of_cell(one.cell)}
            for style, path, one in results
        ])  # fmt: skip
    else:
        _print_outcomes(results)
    raise click.exceptions.Exit(0 if all(one.met for _, _, one in results) else 1)


def _wish(
    sources: Sequence[str], targets: Sequence[str], ports: Sequence[str], namespaces: Sequence[str], patient: bool, *,
    everyone: bool,
) -> MatrixWish:  # fmt: skip
    from emulator.lab.verdicts import GROUPS, MatrixWish

    groups: tuple[Group, ...] = GROUPS if everyone else ("pods",)
    return MatrixWish(
        tuple(sources), tuple(targets), groups, tuple(namespaces), tuple(map(_port, ports)), patient=patient
    )


def _port(text: str) -> PortWish:
    from emulator.errors import UserError
    from emulator.lab.verdicts import PortWish

    match = _PORT.fullmatch(text.lower())
    if match is None or (match[1] and not 0 < int(match[1]) < 65536):
        raise UserError(f"--port {text}: not a port", hint="80, 53/udp, 9999/sctp or icmp")
    if match[1] is None:
        return PortWish("icmp")
    return PortWish(cast(Literal["tcp", "udp", "sctp"], match[2] or "tcp"), int(match[1]))


def _labs(
    manifests: Sequence[str], styles: str, topology: str, proxies: str, policy_mode: PolicyMode, lab: str | None, *,
    hosts: bool, refused: list[tuple[str, str]] | None = None,
) -> Iterator[PolicyLab]:  # fmt: skip
    """The running lab, or a private one of each style while it is looked at. Styles that this kernel or topology cannot
    carry go to ``refused`` where that is given."""
    from emulator.errors import Unsupported, UserError
    from emulator.scenario.policy_labs import policy_lab, running_lab

    if not manifests and not styles:
        yield running_lab(lab)
        return
    if lab is not None:
        raise UserError("--lab means a running lab: it has its manifests and style already")
    for spec in options.split_styles(styles or "calico", (), proxies):
        try:
            with (
                output.progress(f"starting {spec}") as progress,
                policy_lab(
                    spec, manifests, topology=topology, policy_mode=policy_mode, hosts=hosts, progress=progress
                ) as held,
            ):
                yield held
        except Unsupported as error:
            if refused is None:
                raise
            refused.append((spec, error.message))


def _taken(
    manifests: Sequence[str], styles: str, topology: str, proxies: str, policy_mode: PolicyMode, lab: str | None,
    wish: MatrixWish, *, refused: list[tuple[str, str]] | None = None,
) -> list[Checked]:  # fmt: skip
    hosts = "hosts" in wish.groups
    found = []
    for held in _labs(manifests, styles, topology, proxies, policy_mode, lab, hosts=hosts, refused=refused):
        with output.progress(f"asking under {held.style}"):
            found.append(held.take(wish))
    return found


def _heading(checked: Checked) -> str:
    matrix = checked.matrix
    if not matrix.enforcer:
        return checked.style
    return f"{checked.style} ({matrix.enforcer}{', as the API says' if matrix.mode == 'spec' else ''})"


def _tell_notes(checked: Checked) -> None:
    matrix = checked.matrix
    output.labels(checked.labels)
    if checked.unjudged:
        output.notes([f"{len(checked.unjudged)} requests have no way there even without policies: left out"])
    if matrix.changed:
        output.warn("pods or policies changed while the requests were under way: ask again")


def _print_check(checked: Checked) -> None:
    from emulator.report.matrix import difference, request, short_names

    names = short_names((*checked.matrix.sources, *checked.matrix.targets))
    for mark, cells in (("✗", checked.wrong), ("*", checked.deviating)):
        if mark == "*" and not checked.matrix.enforcer:
            continue  # one line says that nothing is enforced
        for cell in cells:
            click.echo(f"{mark} {request(cell, names)}: {difference(cell)}")
    total, right = len(checked.matrix.cells), sum(cell.as_specified for cell in checked.matrix.cells)
    text = f"{_heading(checked)}: {right} of {total} requests as specified, {len(checked.wrong)} wrong"
    if checked.deviating:
        text += f", {len(checked.deviating)} by known deviations"
    if checked.unjudged:
        text += f"; {len(checked.unjudged)} not judged, which have no way there without policies either"
    click.echo(f"{'✗' if checked.wrong else '✓'} {text}")
    _tell_notes(checked if not checked.unjudged else _judged_only(checked))


def _judged_only(checked: Checked) -> Checked:
    import msgspec

    return msgspec.structs.replace(checked, unjudged=())


def _summary(checked: Checked) -> dict[str, Any]:
    matrix = checked.matrix
    return {
        "style": checked.style,
        "enforcer": matrix.enforcer,
        "mode": matrix.mode,
        "requests": len(matrix.cells),
        "as_specified": sum(cell.as_specified for cell in matrix.cells),
        "wrong": len(checked.wrong),
        "deviating": len(checked.deviating),
        "unjudged": len(checked.unjudged),
        "labels": checked.labels,
        "deviations": matrix.deviations,
        "rounds": matrix.rounds,
        "opened": matrix.opened,
        "seconds": round(checked.seconds, 3),
    }


def _rows(checked: Checked) -> Iterator[dict[str, Any]]:
    yield from (_row(checked, cell) for cell in checked.matrix.cells)


def _row(checked: Checked, cell: Cell) -> dict[str, Any]:
    return {"style": checked.style, **_of_cell(cell)}


def _of_cell(cell: Cell) -> dict[str, Any]:
    from emulator.report.matrix import reasons

    return {
        "from": cell.source,
        "to": cell.target,
        "protocol": cell.protocol,
        "port": cell.port,
        "family": cell.family,
        "verdict": cell.verdict,
        "detail": cell.detail,
        "first": cell.first or cell.verdict,
        "window": cell.window,
        "specification": cell.specification,
        "why": reasons(cell),
        "deviation": cell.deviation.what if cell.deviation is not None else "",
        "as_specified": cell.as_specified,
        "wrong": cell.wrong,
    }


def _suite(checked: Checked, *, strict: bool) -> Suite:
    from emulator.report.junit import Case, Suite
    from emulator.report.matrix import difference, request

    cases = []
    for cell in checked.matrix.cells:
        bad = cell.wrong or (strict and not cell.as_specified)
        told = difference(cell) if not cell.as_specified else ""
        cases.append(Case(str(cell.source), request(cell), "failed" if bad else "passed", told))
    why = "no way there even without policies"
    cases += [Case(str(cell.source), request(cell), "skipped", why) for cell in checked.unjudged]
    return Suite(checked.style, tuple(cases), checked.seconds, checked.labels)


def _test_suites(results: Sequence[tuple[str, str, Outcome]]) -> list[Suite]:
    from emulator.report.junit import Case, Suite

    styles = dict.fromkeys(style for style, _, _ in results)
    return [
        Suite(style, tuple(
            Case(path, f"line {one.assertion.line}: {one.assertion.text}", "passed" if one.met else "failed",
                 "" if one.met else _observed(one.cell))
            for here, path, one in results if here == style
        ))
        for style in styles
    ]  # fmt: skip


def _print_outcomes(results: Sequence[tuple[str, str, Outcome]]) -> None:
    styles = dict.fromkeys(style for style, _, _ in results)
    for style in styles:
        here = [(path, one) for found, path, one in results if found == style]
        met = sum(one.met for _, one in here)
        for path, one in here:
            if not one.met:
                click.echo(f"✗ {path}:{one.assertion.line}: {one.assertion.text}: {_observed(one.cell)}")
        click.echo(f"{'✓' if met == len(here) else '✗'} {style}: {met} of {len(here)} assertions hold")


def _observed(cell: Cell) -> str:
    from emulator.report.matrix import observed, reasons, request

    return f"{request(cell)} was {observed(cell)}; the API says {cell.specification} ({'; '.join(reasons(cell))})"


def _write(write: Callable[[str], None], path: str) -> None:
    from emulator.errors import UserError

    try:
        write(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None
