"""Which service proxy a lab has, by what its kernel can."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import pytest

from emulator.cluster.model import Cluster
from emulator.cni.service_proxy import Beside
from emulator.cni.styles import load_style
from emulator.errors import ManifestError, Unsupported, UserError
from emulator.proxy.config import CONFIG_MAP, KEY, NAMESPACE
from tests.golden.service_constructs import backends, base_cluster, on, service

WITHOUT_IPVS = ("ipvs", "dummy")  # as small kernels are


def lacking(*features: str) -> Callable[[Sequence[str]], Sequence[str]]:
    """What a probe of a kernel without these answers."""
    return lambda names: [name for name in names if name in features]


def cluster(*, mode: str = "") -> Cluster:
    """One with a Service, and a kube-proxy configuration if a mode is given."""
    text = f"apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: {mode}\n"
    config_map = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": CONFIG_MAP, "namespace": NAMESPACE},
        "data": {KEY: text},
    }
    made = service()
    return msgspec.structs.replace(
        base_cluster(),
        services=(made,),
        slices=(backends(made, on("n1", 2)),),
        objects=(config_map,) if mode else (),
    )


def beside(spec: str, *missing: str) -> Beside:
    return Beside(spec, load_style(spec), base_cluster().topology, lacking(*missing))


def chosen(found: Beside, **given: str) -> str:
    proxy = found.when(cluster(**given))
    return proxy.name if proxy is not None else "none"


@pytest.mark.parametrize("spec", ["kube-router", "kube-router:full", "kube-router:no-overlay"])
def test_kube_router_has_its_own_proxy_where_the_kernel_has_ipvs(spec: str) -> None:
    found = beside(spec)

    assert chosen(found) == "kube-router"
    assert found.instead == ""


def test_kube_proxy_stands_in_elsewhere_and_that_is_told() -> None:
    found = beside("kube-router", *WITHOUT_IPVS)

    assert chosen(found) == "iptables"
    assert found.instead == (
        "kube-router's service proxy (IPVS) is not possible here, this kernel has no ipvs, dummy: "
        "kube-proxy 1.33 · iptables does its work"
    )


def test_asked_for_by_name_it_is_refused_with_what_is_missing() -> None:
    with pytest.raises(Unsupported, match=r"kube-router's service proxy .* this kernel has no ipvs, dummy") as caught:
        beside("kube-router+kube-router", *WITHOUT_IPVS)
    assert caught.value.features == WITHOUT_IPVS
    assert chosen(beside("kube-router+kube-router")) == "kube-router"


@pytest.mark.parametrize("style", ["flannel", "calico", "kindnet"])
def test_it_runs_with_its_own_style_only(style: str) -> None:
    with pytest.raises(
        UserError, match=f"kube-router's service proxy runs with --cni kube-router only, not with {style}"
    ):
        beside(f"{style}+kube-router")


@pytest.mark.parametrize("mode", ["iptables", "nftables", "ipvs"])
def test_kube_proxy_may_be_asked_for_beside_kube_router(mode: str) -> None:
    assert chosen(beside(f"kube-router+{mode}")) == mode
    assert chosen(beside("kube-router"), mode=mode) == mode


def test_kube_proxys_configuration_cannot_ask_for_it() -> None:
    with pytest.raises(ManifestError, match="kube-router"):
        beside("kube-router").when(cluster(mode="kube-router"))
