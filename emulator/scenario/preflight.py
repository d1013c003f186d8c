"""What can be known of a run before anything is built: that the kernel has what it needs, that the style can carry the
cluster, and that every place named in a step will exist.

Pods come and go with ``apply``, ``delete`` and ``churn``; a name is right if it exists at some point of the scenario.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from ipaddress import ip_address
from typing import Any

from emulator.cluster.assemble import assemble
from emulator.cluster.manifests import load_manifests, namespaces_in, validate_objects
from emulator.cluster.model import Cluster, Topology
from emulator.cluster.topology import load_topology
from emulator.cni.style import Style
from emulator.cni.styles import load_style
from emulator.errors import InputError, NotFound, Problem, ScenarioError, TopologyError, Unsupported, UserError
from emulator.kernel.capabilities import require
from emulator.lab.faults import PLANNED
from emulator.lab.names import Place, common_address, resolve, resolve_target
from emulator.lab.store import ref_of
from emulator.scenario.load import Loaded, walk
from emulator.scenario.model import Bgp, Flow, Replay, Routes, Send, Step, Stream, Wait

Object = dict[str, Any]


def preflight(loaded: Loaded, style: str) -> None:
    """Raises Unsupported if kernel or style cannot carry the scenario, ScenarioError for places that never exist, and
    what is wrong with topology and manifests."""
    scenario = loaded.scenario
    _require(loaded)
    topology = load_topology(loaded.topology())
    clusters = _clusters(loaded, load_style(style), topology)
    problems = [
        Problem(loaded.path, scenario.name, where, reason)
        for place, step in walk(scenario.steps)
        for where, reason in _faults(place, step, clusters)
    ]
    if problems:
        raise ScenarioError(problems)


def _require(loaded: Loaded) -> None:
    try:
        require(loaded.scenario.requires)
    except KeyError as error:
        reason = f"{error.args[0]!r} is no kernel feature or program: `cnilab doctor` lists them"
        raise ScenarioError([Problem(loaded.path, loaded.scenario.name, "requires", reason)]) from None


def _clusters(loaded: Loaded, style: Style, topology: Topology) -> list[Cluster]:
    """The cluster as it is at the start, and after each ``apply``."""
    scenario = loaded.scenario
    given = load_manifests([loaded.beside(name) for name in scenario.manifests]) if scenario.manifests else []
    given += validate_objects(scenario.objects, loaded.path, namespaces=namespaces_in(given))
    clusters = [_assembled(style, topology, given)]
    for _, step in walk(scenario.steps):
        if step.apply is not None:
            for item in step.apply:
                known = namespaces_in(given)
                more = [item] if isinstance(item, dict) else load_manifests([loaded.beside(item)], namespaces=known)
                given += validate_objects(more, loaded.path, namespaces=known)
            given = list({ref_of(obj): obj for obj in given}.values())
            clusters.append(_assembled(style, topology, given))
    return clusters


def _assembled(style: Style, topology: Topology, objects: list[Object]) -> Cluster:
    """Raises Unsupported where the fault is the style's, not the input's."""
    try:
        prepared = style.prepare(topology)
        cluster = assemble(prepared, objects, style.ipam(prepared))
        style.check(cluster)
    except UserError as error:
        if isinstance(error, InputError) and not isinstance(error, TopologyError):
            raise
        raise Unsupported(error.message, hint=error.hint) from error
    return cluster


def _faults(where: str, step: Step, clusters: list[Cluster]) -> Iterator[tuple[str, str]]:
    kind = step.kinds()[0]
    wish = getattr(step, kind)
    if isinstance(wish, Wait) and not wish.source:
        return
    if isinstance(wish, Flow | Stream | Wait | Send | Replay):
        ends = {}
        for field, name in (("from", wish.source), ("to", wish.target)):
            asks = field == "to" and isinstance(wish, Flow | Stream | Wait)  # of the others nobody looks names up
            found = _found(name, clusters, resolve_target if asks else resolve)
            if isinstance(found, str):
                yield f"{where}.{kind}.{field}", found
            else:
                ends[field] = found
        if "from" in ends and not ends["from"].ns:
            yield f"{where}.{kind}.from", "is an address: packets are sent from pods and machines"
        elif len(ends) == 2 and (reason := _apart(ends["from"], ends["to"], getattr(wish, "family", 0))):
            yield f"{where}.{kind}.to", reason
    elif isinstance(wish, Bgp):
        for field, name in (("from", wish.source), ("to", wish.target)):
            found = _found(name, clusters)
            if isinstance(found, str):
                yield f"{where}.bgp.{field}", found
            elif field == "from" and (found.machine is None or found.machine.kind == "host"):
                yield f"{where}.bgp.from", f"{name!r} is not a node or router: BGP speakers are"
            elif field == "to" and found.machine is None:
                yield f"{where}.bgp.to", f"{name!r} is not a machine: sessions are between nodes and routers"
            elif not any(wish.family in (0, ip_address(each).version) for each in found.addresses):
                yield f"{where}.bgp.family", f"{name} has no IPv{wish.family} address"
    elif isinstance(wish, Routes):
        found = _found(wish.target, clusters)
        if isinstance(found, str):
            yield f"{where}.routes.target", found
        elif not found.ns:
            yield f"{where}.routes.target", "is an address: pods and machines have routes"
    elif kind in ("fault", "churn", "ready"):
        found = _found(wish.target, clusters)
        if isinstance(found, str):
            yield f"{where}.{kind}.target", found
        elif kind == "fault" and found.machine is None and wish.kind not in PLANNED:
            reason = f"{wish.target!r} is not a machine: faults of this kind strike nodes, routers and hosts"
            yield f"{where}.fault.target", reason
        elif kind in ("churn", "ready") and found.pod is None:
            yield f"{where}.{kind}.target", f"{wish.target!r} is not a pod"


def _found(name: str, clusters: list[Cluster], finds: Callable[[Cluster, str], Place] = resolve) -> Place | str:
    """The place, as it first exists, or why there is none."""
    reason = ""
    for cluster in clusters:
        try:
            return finds(cluster, name)
        except NotFound as error:
            reason = f"{error.message.removesuffix(' in this lab')}; {error.hint}"
        except UserError as error:
            return f"{error.message}; {error.hint}"
    return reason


def _apart(source: Place, target: Place, family: int) -> str:
    if any(place.pod is not None and not place.addresses for place in (source, target)):
        return ""  # CNI plugins will say which addresses their pods have
    if target.name:
        return ""  # and DNS, which addresses a name has
    try:
        common_address(source, target, family)
    except UserError as error:
        return error.message
    return ""
