"""A running lab: sandbox, desired state, reconcile loop and control socket; and the client for it.

Names are resolved on first use: the lab process imports parts of this package and must not pay for the rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emulator.lab.lab import Capture, Lab, Stream, Trace
    from emulator.lab.records import LabStatus, ProbeAnswer, ProbeRequest

__all__ = ["Capture", "Lab", "LabStatus", "ProbeAnswer", "ProbeRequest", "Stream", "Trace"]
_PLACES = {
    **dict.fromkeys(("Capture", "Lab", "Stream", "Trace"), "emulator.lab.lab"),
    **dict.fromkeys(("LabStatus", "ProbeAnswer", "ProbeRequest"), "emulator.lab.records"),
}


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        from importlib import import_module

        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
