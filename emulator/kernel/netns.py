"""Where a namespace of the plan is found in the running lab."""

from __future__ import annotations

from emulator.plan.model import UNDERLAY

NETNS_DIRECTORY = "/run/netns"  # as iproute2: `ip netns exec n1 ...` works inside the lab


def netns_file(ns: str) -> str:
    """The file name under :data:`NETNS_DIRECTORY` for a namespace of the plan.

    ``node/n1`` -> ``n1``, ``pod/default/web-0`` -> ``default_web-0``, ``underlay`` -> ``underlay``. Kubernetes names
    hold no underscore and machine names are unique over all kinds, so no two namespaces share a file.
    """
    if ns == UNDERLAY:
        return UNDERLAY
    _, _, rest = ns.partition("/")
    return rest.replace("/", "_")


def netns_path(ns: str) -> str:
    """The path that setns(2) can open, inside the lab's mount namespace."""
    return f"{NETNS_DIRECTORY}/{netns_file(ns)}"
