"""The pytest plugin: a ``lab`` fixture, so that users test their own manifests against real packets.

::

    def test_web(lab):
        lab.apply("web.yaml")
        assert lab.probe("n1-p1", "web-0", 80).reached

    @pytest.mark.lab(topology="racks", cni="calico")
    def test_across_racks(lab): ...

``--cnilab-cni flannel,calico`` runs every test that uses the fixture once per style. Each test gets a lab of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from emulator.lab.lab import Lab

STYLE = "cnilab_style"


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--cnilab-cni`` and its ini twin."""
    group = parser.getgroup("cnilab")
    group.addoption(
        "--cnilab-cni", default=None, metavar="STYLE,...", help="CNI styles that the lab fixture runs under"
    )
    parser.addini("cnilab_cni", "CNI styles that the lab fixture runs under", default="flannel")


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line(
        "markers", "lab(topology, cni, manifests, wire_accurate): how the lab fixture builds its lab"
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test per style, unless the marker names the style."""
    if STYLE not in metafunc.fixturenames:
        return
    marker = metafunc.definition.get_closest_marker("lab")
    chosen = (marker.kwargs.get("cni") if marker else None) or metafunc.config.getoption("--cnilab-cni")
    text = chosen or metafunc.config.getini("cnilab_cni")
    metafunc.parametrize(STYLE, [style.strip() for style in str(text).split(",") if style.strip()])


@pytest.fixture
def lab(request: pytest.FixtureRequest, cnilab_style: str) -> Iterator[Lab]:
    """A running lab, private to the test: ``three-nodes`` unless ``@pytest.mark.lab(topology=...)`` says otherwise."""
    from emulator.lab.lab import Lab

    marker = request.node.get_closest_marker("lab")
    options: dict[str, Any] = dict(marker.kwargs) if marker else {}
    options.pop("cni", None)
    topology = options.pop("topology", "three-nodes")
    with Lab(topology, cnilab_style, **options) as running:
        yield running
