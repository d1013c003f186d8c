"""The modes of the service proxy by name."""

from __future__ import annotations

from importlib import import_module

from emulator.proxy.model import Proxy, ProxyMode, ProxySettings


def load_proxy(mode: ProxyMode, settings: ProxySettings) -> Proxy | None:
    """The service proxy of ``mode``, imported only now: a lab uses one. None for ``none``."""
    if mode == "none":
        return None
    proxy: Proxy = import_module(f"emulator.proxy.{mode.replace('-', '_')}").load(settings)
    return proxy
