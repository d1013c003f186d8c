"""A lab whose load balancer checks the health of its targets, and web servers behind it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from emulator import Lab
from emulator.kernel import registry

TOPOLOGIES = Path(__file__).resolve().parents[2] / "scenarios" / "services" / "topologies"


@contextmanager
def lab_with_quick_checks(name: str, style: str, usual: str, hurry: str, base: Path) -> Iterator[Lab]:
    """A lab of the shipped topology ``name``, where the times of health checks read ``hurry`` in place of ``usual``;
    ``base`` is a folder for it."""
    text = (TOPOLOGIES / f"{name}.yaml").read_text()
    assert usual in text
    path = base / f"{name}.yaml"
    path.write_text(text.replace(usual, hurry))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(registry.BASE_VARIABLE, str(base))
        with Lab(str(path), style) as lab:
            yield lab


def pod(name: str, node: str) -> dict[str, Any]:
    """A pod of ``app: web`` that serves port 8080 by TCP and UDP."""
    ports = [{"containerPort": 8080}, {"containerPort": 8080, "protocol": "UDP"}]
    spec = {"nodeName": node, "containers": [{"name": "c", "image": "web", "ports": ports}]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": "web"}}, "spec": spec}
