"""cnilab: what does each CNI style do to my traffic?

The public Python API is :class:`Lab`, and the exceptions of :mod:`emulator.errors`. Names are resolved
on first use, so that ``import emulator`` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emulator.lab import Lab as Lab

__all__ = ["Lab", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "Lab":
        from emulator.lab import Lab

        return Lab
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
