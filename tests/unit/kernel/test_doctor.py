"""What doctor says of service proxies, by what a kernel has."""

from __future__ import annotations

import io

from rich.console import Console

from emulator.kernel import doctor
from emulator.kernel.features import BY_NAME
from emulator.proxy.kube_router import KubeRouterProxy

SMALL = set(BY_NAME) - {"ipvs", "dummy"}


def test_what_a_style_has_for_its_own_is_told_with_what_does_its_work() -> None:
    row = doctor._proxy("kube-router", SMALL)

    assert (row["runs"], row["missing"]) == (False, ["ipvs", "dummy"])
    assert row["options"] == ["CONFIG_IP_VS", "CONFIG_DUMMY"]
    assert row["instead"] == "kube-proxy 1.33 · iptables under --cni kube-router"
    assert doctor._proxy("ipvs", SMALL)["instead"] == ""


def test_where_the_kernel_has_it_nothing_stands_in() -> None:
    row = doctor._proxy("kube-router", set(BY_NAME))

    assert (row["runs"], row["missing"], row["instead"]) == (True, [], "")


def test_proxies_are_drawn_with_what_they_lack() -> None:
    console = Console(width=200, file=io.StringIO(), record=True)
    report: doctor.Report = {**_EMPTY, "proxies": [doctor._proxy("kube-router", SMALL)]}

    console.print(doctor._proxies(report))

    (line,) = (line for line in console.export_text().splitlines() if KubeRouterProxy.title in line)
    assert line.startswith("✗")
    assert "lacks ipvs, dummy (CONFIG_IP_VS, CONFIG_DUMMY); in its place: kube-proxy 1.33 · iptables" in line


_EMPTY: doctor.Report = {
    "machine": {"kernel": "", "architecture": "", "distribution": "", "python": "", "user": "", "root": False},
    "labs": "",
    "tried": False,
    "styles": [],
    "proxies": [],
    "programs": [],
    "features": [],
}
