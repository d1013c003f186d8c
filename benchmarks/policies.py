"""Network policies by the hundred, and one by one: planned, applied, and from a change to the packets that it stops.

``python -m benchmarks policies`` runs it with the others; alone, ``python -m benchmarks.policies [STYLE ...]``.

::

    many    1,000 pods on ten nodes, 500 policies: planned alone; applied to a running lab; one pod's label changed,
            until the apply returned, and until a packet showed it
    few     nine pods on three nodes: one policy changed and 324 probes settled, each as specified; 230 such cases
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from typing import Any

from benchmarks.commands import processor_time
from benchmarks.figures import Clock, Figure
from benchmarks.use_labs import PORTS
from emulator import Lab
from emulator.cluster.assemble import assemble
from emulator.cluster.ipam import Ipam
from emulator.cluster.manifests import validate_objects
from emulator.cluster.topology import parse_topology
from emulator.cni.styles import load_style
from emulator.lab.verdicts import MatrixWish, PortWish
from emulator.plan.build import build
from emulator.policy.enforcement import Enforcement, enforce

Object = dict[str, Any]

STYLES = ("calico", "kube-router", "canal")
PLANNED, APPLIED = 2.0, 5.0  # s: 1,000 pods and 500 policies
LABEL = 0.05  # s: one label of one of the pods, applied
SETTLED = 0.3  # s: one policy, and the 324 probes after it
SUITE, CASES = 60.0, 230  # s: so many cases of that
NODES, SPACES, APPS, COPIES = 10, 10, 50, 2  # 1,000 pods, 500 policies
LABELS, WARM_UP = 11, 2
PROBE_TIMEOUT = 1.0  # s
PATIENCE = 5.0  # s for a change to show
TOPOLOGY = """\
name: policies-benchmark
podCIDRs: [10.244.0.0/16]
serviceCIDRs: [10.96.0.0/12]
pods: 0
switches: [{{name: s1, cidrs: [192.168.50.0/24]}}]
nodes: [{{prefix: n, count: {nodes}, switch: s1}}]
routers: [{{name: tor, switch: s1}}]
"""


def policies(quick: bool) -> list[Figure]:
    """Every style; quick: a tenth of the cases."""
    return [figure for style in STYLES for figure in (*many(style, quick), *few(style, quick))]


def many(style: str, quick: bool) -> list[Figure]:
    """A thousand pods and 500 policies."""
    what = f"1,000 pods, 500 policies, {style}"
    pods, rules = list(many_pods()), list(many_policies())
    applying, labelling, seeing = Clock(), Clock(), Clock()
    planning = _planned(style, [*namespaces(), *pods, *rules])
    with Lab(parse_topology(TOPOLOGY.format(nodes=NODES), "benchmark"), style, [*namespaces(), *pods]) as lab:
        used = processor_time(lab.name)
        with applying.lap():
            lab.apply(*rules)
        applying.cpu = [applying.cpu[0] + processor_time(lab.name) - used]
        # app-1 of the first namespace lets app-2 in. The first pod of app-4 changes into one of app-2, and back
        subject = next(pod for pod in pods if _app(pod) == ("space-0", "app-4"))
        changes = WARM_UP + (5 if quick else LABELS)
        used = processor_time(lab.name)
        for turn in range(changes):
            app = ("app-2", "app-4")[turn % 2]
            labels, shows = (labelling, seeing) if turn >= WARM_UP else (Clock(), Clock())
            with shows.lap():
                with labels.lap():
                    lab.apply({**subject, "metadata": {**subject["metadata"], "labels": {"app": app}}})
                _until(lab, subject["metadata"]["name"], reached=app == "app-2")
        in_lab = (processor_time(lab.name) - used) / changes  # of one change it is too coarse
        labelling.cpu = [value + in_lab for value in labelling.cpu]
    return [
        planning.figure(f"{what}: planned", PLANNED),
        applying.figure(f"{what}: policies applied to the running lab", APPLIED),
        labelling.figure(f"{what}: one label changed", LABEL),
        seeing.figure(f"{what}: one label changed, until a packet showed it"),
    ]


def few(style: str, quick: bool) -> list[Figure]:
    """One policy after the other, each judged by 324 probes."""
    ports = tuple(PortWish("tcp" if protocol == "TCP" else "udp", port) for port, protocol in PORTS)
    names = [f"p{number}" for number in range(9)]
    pods = [pod(f"space-{number % 3}", name, name, f"n{number // 3 + 1}") for number, name in enumerate(names)]
    settling, whole = Clock(), Clock()
    wish = MatrixWish(ports=ports, namespaces=("space-0", "space-1", "space-2"))
    with Lab(parse_topology(TOPOLOGY.format(nodes=3), "benchmark"), style, [*namespaces(3), *pods]) as lab:
        _judged(lab, wish)
        used = processor_time(lab.name)
        count = CASES // 10 if quick else CASES
        with whole.lap():
            for case in islice(cases(), count):
                with settling.lap():
                    lab.apply(case)
                    _judged(lab, wish)
        in_lab = processor_time(lab.name) - used
        whole.cpu = [whole.cpu[0] + in_lab]
        settling.cpu = [value + in_lab / count for value in settling.cpu]
    return [
        settling.figure(f"{style}: one policy changed, and 324 probes as specified", SETTLED),
        whole.figure(f"{style}: {count} such cases", SUITE * count / CASES),
    ]


def namespaces(count: int = SPACES) -> Iterator[Object]:
    """``space-0`` and so on."""
    for number in range(count):
        yield {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": f"space-{number}"}}


def pod(namespace: str, name: str, app: str, node: str) -> Object:
    """A pod that answers on four ports."""
    ports = [{"containerPort": port, "protocol": protocol} for port, protocol in PORTS]
    metadata = {"name": name, "namespace": namespace, "labels": {"app": app}}
    spec = {"nodeName": node, "containers": [{"name": "main", "image": "agnhost", "ports": ports}]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def many_pods() -> Iterator[Object]:
    """In each namespace fifty apps of two pods, dealt out to the nodes."""
    nodes = cycle(f"n{number + 1}" for number in range(NODES))
    for space in range(SPACES):
        for app in range(APPS):
            for copy in range(COPIES):
                yield pod(f"space-{space}", f"app-{app}-{copy}", f"app-{app}", next(nodes))


def many_policies() -> Iterator[Object]:
    """Each app lets the next one in, every fifth one a whole namespace too; every other may go nowhere but there."""
    for space in range(SPACES):
        for app in range(APPS):
            peers: list[Object] = [{"podSelector": {"matchLabels": {"app": f"app-{(app + 1) % APPS}"}}}]
            if app % 5 == 4:
                name = f"space-{(space + 1) % SPACES}"
                peers.append({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}})
            spec: Object = {
                "podSelector": {"matchLabels": {"app": f"app-{app}"}},
                "policyTypes": ["Ingress"],
                "ingress": [{"from": peers, "ports": [{"port": 80, "protocol": "TCP"}]}],
            }
            if app % 10 == 7:
                spec["policyTypes"].append("Egress")
                spec["egress"] = [{"to": [{"podSelector": {}}]}]
            yield network_policy(f"space-{space}", f"app-{app}", spec)


def cases() -> Iterator[Object]:
    """Policies of one name, each another than the one before: who is selected, from whom, on which ports."""
    everyone: Object = {}
    selected = [everyone, *({"matchLabels": {"app": f"p{number}"}} for number in (0, 3, 6))]
    peers: list[list[Object] | None] = [
        None,
        [{"podSelector": {"matchLabels": {"app": "p3"}}}],
        [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "space-1"}}}],
        [{"namespaceSelector": {}, "podSelector": {"matchExpressions": [{"key": "app", "operator": "Exists"}]}}],
        [{"ipBlock": {"cidr": "10.244.0.0/16", "except": ["10.244.1.0/24"]}}],
    ]
    ports: list[list[Object] | None] = [
        None,
        [{"port": 80, "protocol": "TCP"}],
        [{"port": 53, "protocol": "UDP"}, {"port": 8080, "protocol": "TCP"}],
    ]
    combinations = [
        (who, whom, on, way) for way in ("ingress", "egress") for on in ports for whom in peers for who in selected
    ]
    for who, whom, on, way in cycle(combinations):
        rule = {**({"from" if way == "ingress" else "to": whom} if whom else {}), **({"ports": on} if on else {})}
        spec = {"podSelector": who, "policyTypes": [way.capitalize()], way: [rule]}
        yield network_policy("space-0", "case", spec)


def network_policy(namespace: str, name: str, spec: Object) -> Object:
    """One NetworkPolicy."""
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec}


def _planned(style_name: str, objects: Sequence[Object]) -> Clock:
    """From objects, checked already, to the plan."""
    style = load_style(style_name)
    topology = style.prepare(parse_topology(TOPOLOGY.format(nodes=NODES), "benchmark"))
    checked = validate_objects(objects)
    enforcer = style.enforcer("faithful")
    if enforcer is None:
        raise RuntimeError(f"{style_name} enforces no policies")
    clock = Clock()
    with clock.lap():
        ipam: Ipam = style.ipam(topology)
        cluster = assemble(topology, checked, ipam)
        enforcement: Enforcement = enforce(enforcer, cluster)
        build(cluster, style, enforcer=enforcement)
    return clock


def _app(pod: Object) -> tuple[str, str]:
    return pod["metadata"]["namespace"], pod["metadata"]["labels"]["app"]


def _until(lab: Lab, name: str, *, reached: bool) -> None:
    """Ask until the pod reaches app-1, or no longer does. Raises RuntimeError if that does not come to pass."""
    deadline = time.monotonic() + PATIENCE
    source, target = f"space-0/{name}", "space-0/app-1-0"
    timeout = PROBE_TIMEOUT if reached else 0.02  # silence is the answer
    while lab.probe(source, target, 80, "tcp", timeout=timeout).reached != reached:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{source} still {'does not reach' if reached else 'reaches'} {target}")


def _judged(lab: Lab, wish: MatrixWish) -> None:
    """Take the matrix. Raises RuntimeError unless all of it is as the API says, or the enforcer is known to do."""
    matrix = lab.matrix(wish)
    wrong = [cell for cell in matrix.cells if cell.wrong]
    if len(matrix.cells) != 324 or wrong:
        raise RuntimeError(f"{len(wrong)} of {len(matrix.cells)} probes were not judged as expected: {wrong[:1]}")


if __name__ == "__main__":
    for which in sys.argv[1:] or STYLES:
        for figure in (*many(which, quick=False), *few(which, quick=False)):
            cpu = f"cpu {figure.cpu[0]:.3f} s" if figure.cpu else ""
            print(f"{figure.name:85} {figure.median:8.3f} {figure.unit}  {cpu} {figure.note}", flush=True)
