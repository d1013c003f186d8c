"""Scenario files: found by name or path, decoded, and checked before anything is built."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from emulator.cluster.decode import decode, near
from emulator.cluster.kinds import resource
from emulator.cluster.shipped import shipped_file, shipped_folder, shipped_names
from emulator.cluster.strict_yaml import Malformed, documents
from emulator.cluster.validation import faults_of_label_name
from emulator.cluster.workload_status import ROLLED
from emulator.errors import NotFound, Problem, ScenarioError
from emulator.lab.faults import problems
from emulator.scenario.matrices import faults_of_matrix
from emulator.scenario.model import Fault, Scenario, Step, fault_wishes, rollout_target
from emulator.scenario.route_words import fault_of_route

SUFFIX = ".yaml"


class Loaded(msgspec.Struct, frozen=True):
    """A scenario and the file that it came from; paths in it are relative to that file's folder."""

    scenario: Scenario
    path: str

    def topology(self) -> str:
        """The scenario's topology: a shipped name, or the path of a file beside it."""
        name = self.scenario.topology
        return self.beside(name) if "/" in name else name

    def beside(self, name: str) -> str:
        """A path of the scenario as one that can be opened. Raises ScenarioError if it leaves the folder."""
        folder = Path(self.path).parent.resolve()
        found = (folder / name).resolve()
        if not found.is_relative_to(folder.parent):
            raise ScenarioError([Problem(self.path, self.scenario.name, name, "leads out of the scenario's folder")])
        return str(found)


def find_scenarios(wanted: str) -> list[str]:
    """The files meant by a path, a folder, or a shipped name (``connectivity/cross-node``, ``connectivity``).

    Raises NotFound.
    """
    shipped = shipped_folder("scenarios") / wanted
    file = shipped_file("scenarios", wanted)
    for place in (Path(wanted), shipped if ".." not in Path(wanted).parts else Path(), file or Path()):
        if place.is_file():
            return [str(place)]
        if place != Path() and place.is_dir():
            files = [str(path) for path in sorted(place.rglob(f"*{SUFFIX}")) if _is_scenario(path)]
            if files:
                return files
    names = scenario_names()
    hint = near(wanted, [*names, *(name.rpartition("/")[2] for name in names)])
    raise NotFound(f"there is no scenario {wanted!r}", hint=hint or f"shipped ones: {', '.join(names)}")


def scenario_names() -> list[str]:
    """The shipped ones, as ``theme/name``."""
    return [name for name in shipped_names("scenarios") if _is_scenario(Path(name))]


def _is_scenario(path: Path) -> bool:
    """Manifests and topologies lie beside scenarios in folders of their own."""
    return not {"manifests", "topologies"} & set(path.parts)


def load_scenario(path: str) -> Loaded:
    """Read one file. Raises ScenarioError with everything that is wrong, NotFound."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise NotFound(f"cannot read scenario {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ScenarioError([Problem(path, "", "", "not UTF-8 text")]) from None
    return parse_scenario(text, path)


def parse_scenario(text: str, path: str) -> Loaded:
    """A scenario from its text; ``path`` names it in messages and is what its own paths are relative to."""
    try:
        found = list(documents(text))
    except Malformed as error:
        raise ScenarioError([Problem(path, "", "", str(error))]) from None
    if len(found) != 1:
        raise ScenarioError([Problem(path, "", "", f"holds {len(found)} YAML documents: a scenario is exactly one")])
    scenario, faults = decode(found[0].value, Scenario)
    if scenario is None:
        raise ScenarioError([_problem(path, where, reason) for where, reason in faults])
    problems = list(_problems(scenario, path))
    if problems:
        raise ScenarioError(problems)
    return Loaded(scenario, path)


def _fault_of_rollout(text: str) -> str:
    kind, namespace, name = rollout_target(text)
    try:
        rolls = resource(kind).kind in ROLLED
    except NotFound as error:
        return error.message
    if not rolls or not name or not namespace:
        return f"{text!r} is not a workload that rolls out: deployment/NAME, statefulset/NAME, daemonset/NAME"
    return ""


def _problem(path: str, where: str, reason: str) -> Problem:
    if not where:
        # What the decoder leaves to msgspec has its place in the text: "... - at `$.steps[0].wait`".
        reason, _, place = reason.partition(" - at `$")
        where = place.rstrip("`")
    return Problem(path, "", where.lstrip("."), reason)


def _problems(scenario: Scenario, path: str) -> Iterator[Problem]:
    for reason in faults_of_label_name(scenario.name):
        yield Problem(path, "", "name", reason)
    if not scenario.steps:
        yield Problem(path, scenario.name, "steps", "a scenario needs at least one step")
    seen: set[str] = set()
    for where, step in walk(scenario.steps):
        kinds = step.kinds()
        if len(kinds) != 1:
            found = " and ".join(kinds) if kinds else "nothing"
            yield Problem(path, scenario.name, where, f"a step is exactly one thing, not {found}")
            continue
        wish: Any = getattr(step, kinds[0])
        name = getattr(wish, "id", None)
        if name is not None:
            for reason in faults_of_label_name(name):
                yield Problem(path, scenario.name, f"{where}.{kinds[0]}.id", reason)
            if name in seen:
                yield Problem(path, scenario.name, f"{where}.{kinds[0]}.id", f"{name!r} is used twice")
            seen.add(name)
        if step.flow or step.stream:
            request = step.flow or step.stream
            assert request is not None
            if request.protocol != "icmp" and not 1 <= request.port <= 65535:
                yield Problem(path, scenario.name, f"{where}.{kinds[0]}.port", "must be between 1 and 65535, inclusive")
            if not 0 <= request.size <= 1_000_000:
                yield Problem(path, scenario.name, f"{where}.{kinds[0]}.size", "must be between 0 and 1000000 bytes")
        if step.fault:
            for field, reason in dict.fromkeys(_fault_problems(step.fault)):
                yield Problem(path, scenario.name, f"{where}.fault.{field}", reason)
        if step.matrix:
            for field, reason in faults_of_matrix(step.matrix):
                yield Problem(path, scenario.name, f"{where}.matrix.{field}", reason)
        if step.wait and step.wait.rollout and (reason := _fault_of_rollout(step.wait.rollout)):
            yield Problem(path, scenario.name, f"{where}.wait.rollout", reason)
        if step.flow and not 1 <= step.flow.count <= 10_000:
            yield Problem(path, scenario.name, f"{where}.flow.count", "must be between 1 and 10000")
        if step.routes:
            for field in ("present", "absent"):
                given = getattr(step.routes.expect, field)
                for style, routes in given.items() if isinstance(given, dict) else (("", given or []),):
                    for number, route in enumerate(routes):
                        if reason := fault_of_route(route):
                            at = f"{field}.{style}" if style else field
                            yield Problem(path, scenario.name, f"{where}.routes.expect.{at}[{number}]", reason)
        if step.send:
            from emulator.traffic.expression import parse

            try:
                parse(step.send.packet, path, f"{scenario.name} {where}.send.packet")
            except ScenarioError as error:
                yield from error.problems


def _fault_problems(fault: Fault) -> Iterator[tuple[str, str]]:
    """Of a fault as it is under each style that it speaks of: the field as the file spells it, and the reason."""
    for wish in fault_wishes(fault).values():
        for field, reason in problems(wish) if wish is not None else ():
            head, *rest = field.split("_")
            yield head + "".join(part.capitalize() for part in rest), reason


def walk(steps: list[Step], where: str = "steps") -> Iterator[tuple[str, Step]]:
    """All steps with their places in the file, those that run during a stream behind it."""
    for index, step in enumerate(steps):
        yield f"{where}[{index}]", step
        if step.stream is not None:
            yield from walk(step.stream.during, f"{where}[{index}].stream.during")
