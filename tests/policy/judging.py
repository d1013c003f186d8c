"""A small cluster from manifests, and what the evaluator says of flows in it."""

from __future__ import annotations

from typing import Any

import msgspec

from emulator.cluster.assemble import assemble
from emulator.cluster.manifests import parse, validate
from emulator.cluster.model import Cluster
from emulator.cluster.topology import parse_topology
from emulator.cni.styles import load_style
from emulator.policy.compile import compile_policies
from emulator.policy.compiled import Compiled
from emulator.policy.evaluate import evaluate
from emulator.policy.flow import End, Flow, Verdict, pod_end
from emulator.policy.model import Family
from tests.policy.worlds import TOPOLOGY, Object, namespace, pod

TWO = parse_topology(TOPOLOGY, "policies.yaml")
NO_NAMES = ("", "", "", "", "")
# Three namespaces with two pods each; ``b`` is on the other node
BASE: tuple[Object, ...] = (
    *(namespace(name, {"team": name, "env": "prod" if name != "z" else "test"}) for name in "xyz"),
    *(
        pod(space, name, "n1" if name == "a" else "n2", {"app": name, "tier": f"{space}{name}"}, NO_NAMES)
        for space in "xyz"
        for name in "ab"
    ),
)


class Judge:
    """``Judge(yaml).allows("x/a", "x/b")``; an end without a slash is an address outside, ``node/n1`` is a node."""

    def __init__(self, text: str = "", *, more: tuple[Object, ...] = (), base: tuple[Object, ...] = BASE) -> None:
        self.ipam = load_style("flannel").ipam(TWO)
        given = list(parse(text, namespaces=("x", "y", "z")).objects) if text else []
        self.objects: list[Object] = [*base, *more, *given]
        self.cluster: Cluster = self._assembled(None)
        self.compiled: Compiled = compile_policies(self.cluster)

    def _assembled(self, previous: Cluster | None) -> Cluster:
        return assemble(TWO, validate(self.objects).objects, self.ipam, previous)

    def then(self, *objects: Object) -> Compiled:
        """The next step: these objects in place of those of the same kind and name."""
        names = {_ref(one) for one in objects}
        self.objects = [one for one in self.objects if _ref(one) not in names] + list(objects)
        self.cluster = self._assembled(self.cluster)
        self.compiled = compile_policies(self.cluster, self.compiled)
        return self.compiled

    def end(self, text: str, family: Family = 4) -> End:
        if text.startswith("node/"):
            name = text.removeprefix("node/")
            (address,) = [one for one in self.cluster.node(name).addresses if (":" in one) == (family == 6)]
            return End("node", name, address)
        if "/" not in text:
            return End("external", "outside", text)
        (one,) = [one for one in self.cluster.pods if one.key == text]
        found = pod_end(one, family)
        assert found is not None
        return found

    def verdict(self, source: str, target: str, port: int = 80, protocol: str = "TCP", **more: Any) -> Verdict:
        family: Family = more.pop("family", 6 if ":" in source + target else 4)
        flow = Flow(self.end(source, family), self.end(target, family), protocol, port, **more)
        return evaluate(self.compiled, flow)

    def allows(self, source: str, target: str, port: int = 80, protocol: str = "TCP", **more: Any) -> bool:
        return self.verdict(source, target, port, protocol, **more).allowed

    def reaching(self, target: str, port: int = 80, protocol: str = "TCP") -> set[str]:
        """The pods that may connect there, but for itself."""
        keys = {pod.key for pod in self.cluster.pods} - {target}
        return {key for key in keys if self.allows(key, target, port, protocol)}


def _ref(one: Object) -> tuple[str, str, str]:
    return one["kind"], one["metadata"].get("namespace", ""), one["metadata"]["name"]


def relabelled(one: Object, **labels: str) -> Object:
    """The object with other labels."""
    copy: Object = msgspec.json.decode(msgspec.json.encode(one))
    copy["metadata"]["labels"] = labels
    return copy
