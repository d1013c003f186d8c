"""pyroute2's message classes, without the rest of pyroute2.

``import pyroute2.netlink.rtnl.rtmsg`` first runs the package's own ``__init__``, which imports everything that pyroute2
can do (NDB, asyncio, WireGuard, 9P, ...): 100 ms of processor time instead of 20, in every lab that starts. So the
package is entered into ``sys.modules`` unexecuted, and executed once somebody asks it for a name that is not one of its
modules.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec, module_from_spec
from typing import Any


def _enter_unexecuted(package: str) -> None:
    """Have ``package`` importable for the sake of its modules; its own names come when they are asked for."""
    spec = find_spec(package)
    if package in sys.modules or spec is None or spec.loader is None:
        return
    module, loader = module_from_spec(spec), spec.loader

    def attribute(name: str) -> Any:  # PEP 562; `from package import name` tries this before it looks for a module
        if find_spec(f"{package}.{name}") is not None:
            return import_module(f"{package}.{name}")
        module.__dict__.pop("__getattr__", None)
        loader.exec_module(module)
        return getattr(module, name)

    module.__dict__["__getattr__"] = attribute
    sys.modules[package] = module


_enter_unexecuted("pyroute2")

from pyroute2.netlink.rtnl.fibmsg import fibmsg  # noqa: E402
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg  # noqa: E402
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg  # noqa: E402
from pyroute2.netlink.rtnl.ndmsg import ndmsg  # noqa: E402
from pyroute2.netlink.rtnl.rtmsg import rtmsg  # noqa: E402

__all__ = ["fibmsg", "ifaddrmsg", "ifinfmsg", "ndmsg", "rtmsg"]


def __getattr__(name: str) -> Any:
    if name == "wgmsg":  # its module brings sockets and event loops along: only for who asks
        from pyroute2.netlink.generic.wireguard import wgmsg

        return wgmsg
    raise AttributeError(name)
