"""The documentation is whole: a page for each command, style and scenario field, and every link leads somewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import get_args

import click
import msgspec
import pytest

from emulator.cli import COMMANDS
from emulator.cluster.shipped import shipped_names
from emulator.cni.styles import style_names
from emulator.lab.records import FaultKind
from emulator.scenario import model

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "captures/**/*.md", "scenarios/**/*.md", "benchmarks/*.md")
    for path in ROOT.glob(pattern)
    if "runs" not in path.relative_to(ROOT).parts
)
LINK = re.compile(r"(?<!\\)\]\((?P<target>[^)\s]+)\)")
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.S)
SCENARIO_STRUCTS = [
    model.Scenario,
    model.Step,
    model.Flow,
    model.Stream,
    model.Fault,
    model.Churn,
    model.Wait,
    model.Ready,
    model.Replay,
    model.Send,
    model.Expect,
    model.StreamExpect,
    model.Bgp,
    model.BgpExpect,
    model.Routes,
    model.RoutesExpect,
    model.Matrix,
    model.MatrixExpect,
]


def _params(command: click.Command) -> list[click.Parameter]:
    """Of a command; of a group, its own and those of its commands."""
    below = command.commands.values() if isinstance(command, click.Group) else ()
    return [*command.params, *(param for other in below for param in other.params)]


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_a_page_with_all_its_options(name: str) -> None:
    command: click.Command = import_module(COMMANDS[name][0]).command
    page = (ROOT / "docs" / "cli" / f"{name}.md").read_text(encoding="utf-8")
    options = [option for option in _params(command) if isinstance(option, click.Option) and not option.hidden]
    spelled = [spelling for option in options for spelling in option.opts]
    missing = [spelling for spelling in spelled if f"`{spelling}" not in page]
    assert not missing, f"docs/cli/{name}.md says nothing of {', '.join(missing)}"


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_page_names_no_option_that_does_not_exist(name: str) -> None:
    command: click.Command = import_module(COMMANDS[name][0]).command
    page = (ROOT / "docs" / "cli" / f"{name}.md").read_text(encoding="utf-8")
    spelled = {spelling for option in _params(command) for spelling in option.opts}
    rows = re.findall(r"^\| ((?:`-[^|]*?`(?:, )?)+) \|", page.replace("\\|", "/"), re.M)
    told = {spelling for row in rows for spelling in re.findall(r"(?<![\w-])--?[a-z][\w-]*", row)}
    assert told <= spelled, f"docs/cli/{name}.md tells of {', '.join(sorted(told - spelled))}"


def test_the_list_of_commands_links_to_each() -> None:
    page = (ROOT / "docs" / "cli" / "README.md").read_text(encoding="utf-8")
    assert [name for name in COMMANDS if f"({name}.md)" not in page] == []


@pytest.mark.parametrize("style", style_names())
def test_each_style_has_a_page(style: str) -> None:
    assert (ROOT / "docs" / f"{style}.md").is_file(), (
        f"docs/{style}.md: draw the packet's path, as the other styles' pages do"
    )
    assert f"docs/{style}.md" in (ROOT / "README.md").read_text(encoding="utf-8"), (
        "a row for the README's table of styles"
    )


def _spelled(struct: type[msgspec.Struct]) -> Iterator[str]:
    yield from (field.encode_name for field in msgspec.structs.fields(struct))


@pytest.mark.parametrize("struct", SCENARIO_STRUCTS, ids=lambda struct: struct.__name__)
def test_each_field_of_a_scenario_is_in_the_reference(struct: type[msgspec.Struct]) -> None:
    page = (ROOT / "docs" / "scenarios.md").read_text(encoding="utf-8")
    headings = {word for line in re.findall(r"^### (.*)$", page, re.M) for word in line.split(", ")}
    missing = [name for name in _spelled(struct) if f"`{name}`" not in page and name not in headings]
    assert not missing, f"docs/scenarios.md says nothing of {struct.__name__}: {', '.join(missing)}"


def test_each_fault_is_in_the_reference() -> None:
    page = (ROOT / "docs" / "scenarios.md").read_text(encoding="utf-8")
    assert [kind for kind in get_args(FaultKind) if f"`{kind}`" not in page] == []


def test_each_shipped_scenario_is_in_the_reference() -> None:
    page = (ROOT / "docs" / "scenarios.md").read_text(encoding="utf-8")
    shipped = [name for name in shipped_names("scenarios") if not {"manifests", "topologies"} & set(name.split("/"))]
    assert shipped
    assert [name for name in shipped if f"`{name.rpartition('/')[2]}`" not in page] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for match in LINK.finditer(CODE.sub("", page.read_text(encoding="utf-8"))):
        target, _, anchor = match["target"].partition("#")
        if "://" in match["target"] or target.startswith("mailto:"):
            continue
        file = (page.parent / target).resolve() if target else page
        if not file.exists():
            broken.append(f"{match['target']}: there is no such file")
        elif anchor and anchor not in set(_anchors(file)):
            broken.append(f"{match['target']}: there is no such heading")
    assert not broken, "\n".join(broken)


def _anchors(page: Path) -> Iterator[str]:
    """Of each heading, as forges make them: lower case, spaces become hyphens, punctuation goes."""
    for heading in re.findall(
        r"^#+ +(.*?) *$", re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S), re.M
    ):
        yield re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_pictures_are_small_enough_for_a_page() -> None:
    heavy = [path.name for path in (ROOT / "docs" / "images").iterdir() if path.stat().st_size > 300_000]
    assert heavy == []
