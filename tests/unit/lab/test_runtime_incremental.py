"""A lab that came to its objects step by step is the same as one that began with them."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import pytest

from emulator.cluster.topology import parse_topology
from emulator.cni.service_proxy import Beside
from emulator.cni.styles import load_style, with_proxy
from emulator.lab.objects import as_given
from emulator.lab.runtime import Runtime
from emulator.lab.store import Ref, ref_of
from emulator.proxy.conntrack import served
from tests.unit.lab.conftest import TOPOLOGY, PaperMachinery

NAMESPACES = ("default", "shop")


def service(number: int, chance: random.Random) -> dict[str, Any]:
    ports = [{"name": "a", "port": 80, "protocol": chance.choice(("TCP", "UDP"))}]
    selector = {"app": chance.choice("xy")} if number % 3 == 0 else {}
    spec = {"clusterIP": f"10.97.0.{number + 1}", "ports": ports, **({"selector": selector} if selector else {})}
    return named("v1", "Service", f"s{number}", spec=spec)


def named(version: str, kind: str, name: str, namespace: str = "default", **rest: Any) -> dict[str, Any]:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, "namespace": namespace}, **rest}


def slice_of(number: int, chance: random.Random) -> dict[str, Any]:
    made = named(
        "discovery.k8s.io/v1",
        "EndpointSlice",
        f"e{number}",
        addressType="IPv4",
        ports=[{"name": "a", "port": 8080, "protocol": "TCP"}],
        endpoints=[{"addresses": [f"10.244.9.{chance.randint(1, 9)}"]} for _ in range(chance.randint(0, 3))],
    )
    if chance.random() < 0.8:
        made["metadata"]["labels"] = {"kubernetes.io/service-name": f"s{chance.randrange(8)}"}
    return made


def endpoints(number: int, chance: random.Random) -> dict[str, Any]:
    addresses = [{"ip": f"10.244.8.{chance.randint(1, 9)}"}]
    subset = {"addresses": addresses, "ports": [{"name": "a", "port": 9090}]}
    # Of Services without a selector: those of others are the controller's
    return named("v1", "Endpoints", f"s{number + (number % 3 == 0)}", subsets=[subset])


def pod(number: int, chance: random.Random) -> dict[str, Any]:
    container = {"name": "c", "image": "x", "ports": [{"containerPort": 80}]}
    made = named("v1", "Pod", f"p{number}", spec={"nodeName": "n1", "containers": [container]})
    made["metadata"]["labels"] = {"app": chance.choice("xyz")}
    return made


def config(number: int, chance: random.Random) -> dict[str, Any]:
    mtu = f'{{"Network": "10.244.0.0/16", "Backend": {{"Type": "vxlan", "Port": {chance.choice((8472, 4789))}}}}}'
    if number % 2:
        return named("v1", "ConfigMap", "kube-flannel-cfg", "kube-flannel", data={"net-conf.json": mtu})
    return named("v1", "ConfigMap", f"c{number}", data={"x": str(chance.random())})


MAKERS = (service, service, slice_of, slice_of, slice_of, endpoints, pod, config)


def started(mode: str, objects: list[dict[str, Any]]) -> Runtime:
    topology = parse_topology(TOPOLOGY, "small.yaml")
    spec = with_proxy("flannel", mode)
    style = load_style(spec)
    runtime = Runtime(
        topology, style, PaperMachinery(),  # type: ignore[arg-type]
        proxy=Beside(spec, style, topology), wire_accurate=False, progress=lambda _: None,
    )  # fmt: skip
    runtime.machinery.forget_stale = lambda nodes, known: None  # type: ignore[method-assign]
    runtime.start(objects)
    return runtime


def content(runtime: Runtime) -> dict[Ref, Any]:
    """What the store holds, less what tells when and by which names it came there."""
    found: dict[Ref, Any] = {}
    for obj in runtime.store.all():
        ref = ref_of(obj)
        plain = as_given(obj)
        plain.pop("status", None)
        if ref.kind == "Pod":
            plain.pop("spec", None)
        metadata: Mapping[str, Any] = plain["metadata"]
        plain["metadata"] = {
            key: value for key, value in metadata.items() if key not in ("ownerReferences", "annotations")
        }
        found[ref] = plain
    return found


def stem(ref: Ref, known: Mapping[Ref, Any]) -> Ref:
    """Slices that the controller made have names that depend on which ones there were before."""
    ours = ref.kind == "EndpointSlice" and ref not in known
    return ref._replace(name=ref.name.rpartition("-")[0]) if ours else ref


@pytest.mark.parametrize("mode", ["nftables", "iptables"])
@pytest.mark.parametrize("seed", range(3))
def test_step_by_step_comes_to_the_same_as_at_once(mode: str, seed: int) -> None:
    chance = random.Random(seed)
    first = [named("v1", "Namespace", "kube-flannel")]
    del first[0]["metadata"]["namespace"]
    runtime = started(mode, first)
    known: dict[Ref, dict[str, Any]] = {}
    for turn in range(33):
        if known and chance.random() < 0.25:
            gone = chance.sample(list(known), chance.randint(1, min(2, len(known))))
            runtime.delete(gone, grace=0)
            for ref in gone:
                del known[ref]
        else:
            made = {ref_of(one): one for one in (chance.choice(MAKERS)(chance.randrange(8), chance) for _ in range(2))}
            runtime.apply(list(made.values()))
            known.update(made)
        if turn % 4:
            continue
        fresh = started(mode, [*first, *known.values()])
        now, wanted = runtime.current, fresh.current
        assert now.services == wanted.services
        assert {one.name: one for one in now.slices if not one.made_by_us} == {
            one.name: one for one in wanted.slices if not one.made_by_us
        }
        assert tuple(now.objects) == tuple(wanted.objects)
        assert served(now).addresses.keys() == served(wanted).addresses.keys()
        stored, expected = content(runtime), content(fresh)
        assert {stem(ref, known) for ref in stored} == {stem(ref, known) for ref in expected}
        for ref, obj in expected.items():
            if ref.kind in ("Service", "ConfigMap") or ref in known:
                assert stored[ref] == obj
        assert runtime.plan is not None
        assert fresh.plan is not None
        if [one.addresses for one in now.pods] == [one.addresses for one in wanted.pods]:
            for name in ("node/n1", "node/n2", "proxy/n1", "proxy/n2"):
                assert runtime.plan.fragments.get(name) == fresh.plan.fragments.get(name), f"turn {turn}: {name}"


def test_a_service_that_is_changed_keeps_what_was_allocated_to_it() -> None:
    def node_port(port: int) -> dict[str, Any]:
        return named("v1", "Service", "web", spec={"type": "NodePort", "ports": [{"port": port}]})

    runtime = started("nftables", [])
    runtime.apply([node_port(80)])
    (before,) = [one for one in runtime.current.services if one.name == "web"]
    runtime.apply([node_port(81)])
    (after,) = [one for one in runtime.current.services if one.name == "web"]
    assert after.cluster_ips == before.cluster_ips
    assert after.ports[0].node_port == before.ports[0].node_port
