"""What `cnilab doctor` tells: can this machine and this user build labs, which styles run, and what is missing.

:func:`doctor_report` gives data that is the command's ``--json``; :func:`render` the same for people.
"""

from __future__ import annotations

import os
import platform
import pwd
import sys
from collections.abc import Sequence
from typing import TypedDict

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from emulator.cni.styles import BUILT_IN, load_style, mode_names, style_names
from emulator.kernel import capabilities, distribution
from emulator.kernel.capabilities import Feature, State
from emulator.kernel.features import BY_NAME, KERNEL, PROGRAMS, KernelFeature
from emulator.kernel.stand_ins import adapted
from emulator.proxy.model import PROXY_MODES, ProxyMode, ProxySettings
from emulator.proxy.modes import load_proxy


class Machine(TypedDict):
    """Where the answers were found. ``root`` is the machine's root, or that of a container."""

    kernel: str
    architecture: str
    distribution: str
    python: str
    user: str
    root: bool


class FeatureRow(TypedDict):
    """A kernel feature: ``state`` is yes, loadable, no or unknown."""

    name: str
    state: State
    detail: str
    kernel_option: str
    needed_by: str
    hint: str


class ProgramRow(TypedDict):
    """A program: ``path`` and ``version`` are empty where it is missing or tells none."""

    name: str
    state: State
    path: str
    version: str
    needed_by: str
    optional: bool
    detail: str
    hint: str


class StyleRow(TypedDict):
    """A CNI style in one of its modes; ``name`` is what ``--cni`` takes. ``missing`` are features and programs,
    ``options`` the kernel options that would bring them; ``stand_in`` is what is not the real thing; ``error`` is set
    where the style itself cannot be loaded."""

    name: str
    title: str
    runs: bool
    missing: list[str]
    options: list[str]
    stand_in: str
    error: str


class ProxyRow(TypedDict):
    """A service proxy; ``name`` is what ``--proxy`` takes. ``missing`` and ``options`` as of a style; ``instead`` is
    what does its work under the style whose own it is, where it cannot be had."""

    name: str
    title: str
    runs: bool
    missing: list[str]
    options: list[str]
    instead: str


class Report(TypedDict):
    """The whole answer. ``labs`` is "" where labs can be built here, otherwise why not."""

    machine: Machine
    labs: str
    tried: bool
    styles: list[StyleRow]
    proxies: list[ProxyRow]
    programs: list[ProgramRow]
    features: list[FeatureRow]


def doctor_report(try_load: bool = False) -> Report:
    """Ask everything. Without ``try_load`` no kernel module is loaded; with it, as root, the answers are for sure."""
    found = capabilities.probe(try_load=try_load)
    usable = {name for name, feature in found.items() if feature.usable}
    return Report(
        machine=_machine(),
        labs=_why_not(found),
        tried=try_load,
        styles=[_style(name, usable) for name in _specs()],
        proxies=[_proxy(mode, usable) for mode in PROXY_MODES if mode != "none"],
        programs=[
            ProgramRow(
                name=program.executable,
                state=found[program.name].state,
                path=found[program.name].path,
                version=found[program.name].version,
                needed_by=program.needed_by,
                optional=program.optional,
                detail=found[program.name].detail,
                hint=found[program.name].hint,
            )
            for program in PROGRAMS
        ],
        features=[
            FeatureRow(
                name=feature.name,
                state=found[feature.name].state,
                detail=found[feature.name].detail,
                kernel_option=feature.option,
                needed_by=feature.needed_by,
                hint=found[feature.name].hint,
            )
            for feature in KERNEL
        ],
    )


def healthy(report: Report) -> bool:
    """Whether labs can be built here and at least one style runs."""
    return not report["labs"] and any(style["runs"] for style in report["styles"])


def _machine() -> Machine:
    system = os.uname()
    try:
        user = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        user = str(os.geteuid())
    return Machine(
        kernel=system.release,
        architecture=system.machine,
        distribution=distribution.current().title,
        python=f"{platform.python_version()} ({sys.executable})",
        user=user,
        root=os.geteuid() == 0,
    )


LAB_NEEDS = ("netns", "veth", "ip", "mnexec", "af_packet")


def _why_not(found: dict[str, Feature]) -> str:
    missing = [found[name] for name in LAB_NEEDS if not found[name].usable]
    if not missing:
        return ""
    error = capabilities.unsupported(missing)
    return f"{error.message}; {error.hint}" if error.hint else error.message


def _style(name: str, usable: set[str]) -> StyleRow:
    try:
        style = load_style(name)
    except Exception as error:  # another distribution's style may be broken in any way, and doctor is to say so
        said = f"{type(error).__name__}: {error}"
        return StyleRow(name=name, title=name, runs=False, missing=[], options=[], stand_in="", error=said)
    # A style of another distribution may ask for what this version does not know.
    missing = _lacking(style.requires, usable)
    spec = getattr(style, "fallback", "") if missing else ""
    if spec and usable.issuperset(load_style(spec).requires):
        style, missing = load_style(spec), []  # what a lab takes in its place (emulator.kernel.stand_ins)
    if not missing:
        style = adapted(style, lambda names: [need for need in names if need not in usable])
    options = _options(missing)
    stand_in = str(getattr(style, "stand_in", ""))
    return StyleRow(
        name=name, title=style.title, runs=not missing, missing=missing, options=options, stand_in=stand_in, error=""
    )


def _proxy(mode: ProxyMode, usable: set[str]) -> ProxyRow:
    """A service proxy, and who stands in for it. A style's own is the first of its list."""
    proxy = load_proxy(mode, ProxySettings())
    assert proxy is not None
    missing = _lacking(proxy.requires, usable)
    instead = ""
    if missing and mode in BUILT_IN:  # a style's very own
        others = (load_proxy(other, ProxySettings()) for other in load_style(mode).proxies)
        fitting = [each.title for each in others if each is not None and usable.issuperset(each.requires)]
        instead = f"{fitting[0]} under --cni {mode}" if fitting else ""
    return ProxyRow(
        name=mode, title=proxy.title, runs=not missing, missing=missing, options=_options(missing), instead=instead
    )


def _lacking(requires: Sequence[str], usable: set[str]) -> list[str]:
    return [need for need in requires if need not in BY_NAME or need not in usable]


def _options(missing: Sequence[str]) -> list[str]:
    """The kernel options that would bring it."""
    features = [BY_NAME[need] for need in missing if need in BY_NAME]
    return [feature.option for feature in features if isinstance(feature, KernelFeature)]


def _specs() -> list[str]:
    """Every style's every mode; a style that does not even load by its name."""
    specs = []
    for name in style_names():
        try:
            default, *others = mode_names(name)
        except Exception:  # see _style
            default, others = name, []
        specs += [name, *(f"{name}:{mode}" for mode in others if mode != default)]
    return specs


# for people

MARKS: dict[State, tuple[str, str]] = {
    "yes": ("✓", "green"),
    "loadable": ("✓", "cyan"),
    "no": ("✗", "red"),
    "unknown": ("?", "yellow"),
}


def render(report: Report) -> RenderableType:
    """The report as rich tables: first whether labs run here, then what each style lacks, then the long lists."""
    machine = report["machine"]
    head = Text(f"{machine['distribution']}, kernel {machine['kernel']}, {machine['architecture']}\n", style="bold")
    head.append(f"Python {machine['python']}, as {machine['user']}\n", style="not bold dim")
    verdict = (
        Text(f"✗ labs cannot be built here: {report['labs']}\n", style="red")
        if report["labs"]
        else Text("✓ labs can be built here\n", style="green")
    )
    parts: list[RenderableType] = [
        *(head, verdict, _styles(report), _proxies(report)),
        *(_programs(report), _features(report)),
    ]
    if any(feature["state"] in ("loadable", "unknown") for feature in report["features"]) and not report["tried"]:
        said = "No kernel module was loaded to find this out; `sudo cnilab doctor --try` tries all features."
        parts.append(Text(f"\n{said}", style="dim"))
    return Group(*parts)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("", width=1)
    for number, column in enumerate(columns):
        table.add_column(column, no_wrap=number == 0, overflow="fold")
    return table


def _mark(state: State) -> Text:
    sign, colour = MARKS[state]
    return Text(sign, style=colour)


def _styles(report: Report) -> Table:
    table = _table("CNI styles", "--cni", "style", "")
    for style in report["styles"]:
        lacks = _lacks(style)
        how = f"stand-in: {style['stand_in']}" if style["stand_in"] else "native"
        says = how if style["runs"] else style["error"] or lacks
        table.add_row(_mark("yes" if style["runs"] else "no"), style["name"], style["title"], Text(says))
    return table


def _proxies(report: Report) -> Table:
    table = _table("\nService proxies", "--proxy", "proxy", "")
    for proxy in report["proxies"]:
        instead = f"; in its place: {proxy['instead']}" if proxy["instead"] else ""
        says = "native" if proxy["runs"] else _lacks(proxy) + instead
        table.add_row(_mark("yes" if proxy["runs"] else "no"), proxy["name"], proxy["title"], Text(says))
    return table


def _lacks(row: StyleRow | ProxyRow) -> str:
    options = f" ({', '.join(row['options'])})" if row["options"] else ""
    return f"not possible here: lacks {', '.join(row['missing'])}{options}"


def _programs(report: Report) -> Table:
    table = _table("\nPrograms", "program", "version", "needed by", "")
    for row in report["programs"]:
        state: State = "unknown" if row["optional"] and row["state"] == "no" else row["state"]
        table.add_row(
            _mark(state), row["name"], Text(row["version"] or row["path"]), Text(row["needed_by"]), _advice(row)
        )
    return table


def _features(report: Report) -> Group:
    rows = report["features"]
    works = [row["name"] for row in rows if row["state"] == "yes"]
    parts: list[RenderableType] = [
        Text(f"\nKernel features: {len(works)} of {len(rows)} work", style="bold"),
        Text("✓ ", style="green").append(", ".join(works), style="default"),
    ]
    waiting = [row["name"] for row in rows if row["state"] == "loadable"]
    if waiting:
        parts.append(Text("✓ ", style="cyan").append(f"on first use: {', '.join(waiting)}", style="default"))
    others = [row for row in rows if row["state"] not in ("yes", "loadable")]
    hints = [row["hint"].split("; ")[0] for row in others if row["state"] == "no" and row["hint"]]
    common = max(set(hints), key=hints.count) if hints else ""
    if others:
        table = _table("", "feature", "needed by", "")
        for row in others:
            # Said once below, not in twenty rows.
            advice = _advice(row, leave_out=common if hints.count(common) > 2 else "")
            table.add_row(_mark(row["state"]), row["name"], Text(row["needed_by"]), advice)
        parts.append(table)
    if hints.count(common) > 2:
        parts.append(Text(f"\nWhat has a ✗: {common}.", style="yellow"))
    return Group(*parts)


def _advice(row: FeatureRow | ProgramRow, leave_out: str = "") -> Text:
    if row["state"] == "yes":
        return Text("")
    parts = [row["detail"], *row["hint"].split("; ")]
    return Text("; ".join(part for part in parts if part and part != leave_out), style="dim")
