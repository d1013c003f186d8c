"""What a lab says of its network policies beside its answers: which have no effect, and where the data path differs.

A policy that nothing enforces must never go unnoticed: that is a label, which every output carries. What an enforcer
does otherwise than the API says is a notice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from emulator.cluster.model import Cluster
from emulator.cni.style import Style
from emulator.policy.enforcement import Enforcement
from emulator.policy.enforcer import Deviation

Object = dict[str, Any]
# Of Kubernetes, of Calico, and of the policy API
KINDS = frozenset(
    (
        "NetworkPolicy",
        "GlobalNetworkPolicy",
        "AdminNetworkPolicy",
        "BaselineAdminNetworkPolicy",
        "ClusterNetworkPolicy",
    )
)
NAMED = 3  # policies that a line names; the others are counted


class PolicyNotes:
    """Keeps what was said of the last cluster: the lines go with every answer."""

    def __init__(self, style: Style) -> None:
        self._style = style
        self._of: tuple[object, object] = (None, None)
        self._labels: tuple[str, ...] = ()
        self._notices: tuple[str, ...] = ()

    def labels(self, cluster: Cluster, enforcement: Enforcement | None) -> tuple[str, ...]:
        """A line for policies that have no effect; nothing if all have, or there are none."""
        self._look(cluster, enforcement)
        return self._labels

    def notices(self, cluster: Cluster, enforcement: Enforcement | None) -> tuple[str, ...]:
        """A line for each thing that the enforcer does otherwise than the API says, and the policies that it meets."""
        self._look(cluster, enforcement)
        return self._notices

    def _look(self, cluster: Cluster, enforcement: Enforcement | None) -> None:
        of = (cluster.objects, enforcement.compiled if enforcement is not None else None)
        if all(one is other for one, other in zip(self._of, of, strict=True)):
            return
        if enforcement is None:
            self._labels, self._notices = nobody_enforces(self._style, cluster.objects), ()
        else:
            found = list(enforcement.enforcer.deviations(cluster, enforcement.compiled))
            self._labels = tuple(_lines(one for one in found if one.unenforced))
            self._notices = tuple(_lines(one for one in found if not one.unenforced))
        self._of = of


def nobody_enforces(style: Style, objects: Iterable[Object]) -> tuple[str, ...]:
    """The line that says so of the policies among the objects, if there are any."""
    names = [_name(thing) for thing in objects if thing["kind"] in KINDS]
    if not names:
        return ()
    why = f" ({style.unpoliced})" if style.unpoliced else ""
    return (f"NO POLICY IS ENFORCED: under {style.name} nothing makes {_listed(names)} hold{why}",)


def _lines(deviations: Iterable[Deviation]) -> Iterable[str]:
    grouped: dict[str, list[str]] = {}
    for one in deviations:
        source = f" ({one.source})" if one.source else ""
        words = f"{'NOT ENFORCED: ' if one.unenforced else 'policies: '}{one.what}{source}"
        grouped.setdefault(words, []).extend([one.policy] if one.policy else [])
    for words, policies in grouped.items():
        yield f"{words}: {_listed(policies)}" if policies else words


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{', '.join(names[:NAMED])}{more}"


def _name(thing: Object) -> str:
    metadata = thing["metadata"]
    namespace = metadata.get("namespace", "")
    return f"{thing['kind']} {namespace}/{metadata['name']}" if namespace else f"{thing['kind']} {metadata['name']}"
