"""``cnilab cni``: have the CNI plugins of a lab carry out a command, as their authors want to see it."""

from __future__ import annotations

from typing import Any

import click

from emulator.cli import options, output
from emulator.cli.connection import connect


@click.group("cni")
def command() -> None:
    """Run CHECK, STATUS or GC of the plugins that attached a lab's pods (labs of `--cni conflist=FILE`)."""


@command.command("check")
@click.argument("pods", nargs=-1, metavar="[POD]...", shell_complete=options.complete_places)
@options.lab
@options.as_json
def check(pods: tuple[str, ...], lab: str | None, as_json: bool) -> None:
    """CHECK pods (default: all), and compare the plugins' results with what the pods have.

    Exit status 1 if there is a complaint.
    """
    _tell(lab, "CHECK", pods, as_json)


@command.command("status")
@options.lab
@options.as_json
def status(lab: str | None, as_json: bool) -> None:
    """Ask the plugins on each node whether they are ready for ADD (STATUS, CNI 1.1).

    Exit status 1 if one is not.
    """
    _tell(lab, "STATUS", (), as_json)


@command.command("gc")
@options.lab
@options.as_json
def collect(lab: str | None, as_json: bool) -> None:
    """Have the plugins on each node drop what belongs to no pod of the lab (GC, CNI 1.1).

    Attachments that only the runtime's cache knows of are deleted before. Exit status 1 if a plugin fails.
    """
    _tell(lab, "GC", (), as_json)


def _tell(lab: str | None, verb: str, pods: tuple[str, ...], as_json: bool) -> None:
    with output.progress(f"running {verb}"):
        findings = connect(lab).plugins(verb, *pods)
    if as_json:
        output.print_json(findings)
    else:
        headers = ["NODE", *(["POD"] if verb == "CHECK" else []), "RESULT"]
        output.table(headers, [row for finding in findings for row in _rows(finding, verb)])
    if any(finding.get("complaints") for finding in findings):
        raise click.exceptions.Exit(1)


def _rows(finding: dict[str, Any], verb: str) -> list[list[str]]:
    place = [finding["node"], *([finding["pod"]] if verb == "CHECK" else [])]
    skipped = finding.get("skipped", "")
    texts = [*finding.get("complaints", ()), *([f"not asked: {skipped}"] if skipped else [])]
    return [[*(place if number == 0 else [""] * len(place)), text] for number, text in enumerate(texts or ["ok"])]
