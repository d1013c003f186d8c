"""The results of attachments, cached in their node as libcni does it (libcni/api.go, cacheAdd), so that its tools can
read them. To be called in a thread that has entered the node.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

from emulator.cni.chain import Container
from emulator.kernel.footprint import RESULTS
from emulator.plan.model import CniAttachment

CACHE_KIND = "cniCacheV1"  # libcni/api.go


def store(item: CniAttachment, raw: dict[str, Any], container: Container) -> None:
    """Keep the result of an ADD."""
    os.makedirs(RESULTS, mode=0o700, exist_ok=True)
    info = {
        "kind": CACHE_KIND,
        "containerId": item.container,
        "config": base64.b64encode(item.network.encode()).decode(),
        "ifName": item.device,
        "networkName": json.loads(item.network)["name"],
        "netns": container.netns,
        "cniArgs": item.args,
        "capabilityArgs": json.loads(item.capabilities),
        "result": raw,
    }
    with open(_path(item), "w", encoding="utf-8") as file:
        json.dump(info, file)


def load(item: CniAttachment) -> dict[str, Any] | None:
    """The result; None if it is gone or no result."""
    try:
        with open(_path(item), encoding="utf-8") as file:
            result = json.load(file)["result"]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # gone: DEL must do without
    return result if isinstance(result, dict) else None


def drop(item: CniAttachment) -> None:
    """Forget the result."""
    try:
        os.unlink(_path(item))
    except OSError:
        pass


def stale(network: str, valid: Sequence[tuple[str, str]]) -> Iterator[tuple[str, Container, Any]]:
    """What is cached of a network and belongs to none of the ``valid`` (container, device), as libcni's GCNetworkList
    finds it: the file, and what to DEL."""
    for path in [f"{RESULTS}/{name}" for name in (os.listdir(RESULTS) if os.path.isdir(RESULTS) else ())]:
        try:
            with open(path, encoding="utf-8") as file:
                info = json.load(file)
            pair = (info["containerId"], info["ifName"])
            if info["networkName"] != network or pair in valid:
                continue
            container = Container(*pair[:1], info.get("netns", ""), pair[1], tuple(map(tuple, info["cniArgs"])))
        except (OSError, ValueError, KeyError, TypeError):
            continue
        yield path, container, info.get("result")


def _path(item: CniAttachment) -> str:
    return f"{RESULTS}/{json.loads(item.network)['name']}-{item.container}-{item.device}"
