"""How a Deployment gets from one template to the next: the steps of its controller, each a function of the state.

A step is what one sync of the real controller may do (kubernetes pkg/controller/deployment rolling.go and recreate.go):
grow the new ReplicaSet as far as maxSurge lets it, then shrink the old ones as far as maxUnavailable lets them. What
comes next waits until pods are ready, or gone. Where it differs: a Deployment that is scaled in the middle of a rollout
goes on towards the new number, without the proportional scaling of all its ReplicaSets in between.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from emulator.cluster.model import ReplicaSet
from emulator.cluster.podspec import Strategy, Workload

DEFAULT_SHARE = "25%"  # of maxSurge and maxUnavailable


class Population(NamedTuple):
    """The pods of a ReplicaSet: how many are available, and how many are on their way out."""

    available: int = 0
    leaving: int = 0


def share(value: int | str | None, total: int, *, up: bool) -> int:
    """A number, or a percentage of ``total`` rounded up or down (intstr.GetScaledValueFromIntOrPercent)."""
    if not isinstance(value, str):
        return value or 0
    exact = int(value.removesuffix("%")) * total / 100
    return math.ceil(exact) if up else math.floor(exact)


def next_step(
    desired: int, strategy: Strategy, new: str, sizes: Mapping[str, int], pods: Mapping[str, Population]
) -> dict[str, int]:
    """The sizes that the ReplicaSets should have next. ``sizes`` are those of now, the oldest first; ``new`` is the
    name of the one with the Deployment's template, which need not be among them."""
    result = {**sizes, new: sizes.get(new, 0)}
    old = [name for name in sizes if name != new]
    if strategy.type == "Recreate":
        if any(sizes[name] or pods.get(name, Population()).leaving for name in old):
            return {**result, **dict.fromkeys(old, 0)}
        return {**result, new: desired}
    rolling = strategy.rolling_update
    surge = share(
        DEFAULT_SHARE if rolling is None or rolling.max_surge is None else rolling.max_surge, desired, up=True
    )
    given = None if rolling is None else rolling.max_unavailable
    unavailable = min(share(DEFAULT_SHARE if given is None else given, desired, up=False), desired)
    if surge == unavailable == 0:
        unavailable = 1  # else nothing could ever move (ResolveFenceposts)
    if result[new] > desired:
        result[new] = desired
    room = desired + surge - sum(result.values())
    if room > 0:
        result[new] += max(0, min(room, desired - result[new]))
    _shrink(desired - unavailable, new, old, result, pods)
    return result


def _shrink(least: int, new: str, old: Sequence[str], result: dict[str, int], pods: Mapping[str, Population]) -> None:
    """Take from the old ReplicaSets what is not needed for ``least`` available pods, the unavailable ones first."""
    available = {name: min(size, pods.get(name, Population()).available) for name, size in result.items()}
    spare = sum(result.values()) - least - (result[new] - available[new])
    for name in old:
        down = max(0, min(spare, result[name] - available[name]))
        result[name] -= down
        spare -= down
    surplus = min(sum(available.values()) - least, spare)
    for name in old:
        down = max(0, min(surplus, result[name]))
        result[name] -= down
        surplus -= down


def replica_sets(
    workload: Workload,
    new: str,
    before: Sequence[ReplicaSet],
    population: Callable[[str], Population],
) -> tuple[ReplicaSet, ...]:
    """The ReplicaSets of a Deployment after its next step, the one with its template last. ``new`` is that one's name,
    ``before`` those of the step before; ``population`` tells of the pods of one of them. One without pods goes."""
    spec = workload.spec
    desired = 1 if spec.replicas is None else spec.replicas
    known = {one.name: one for one in before}
    sizes = {one.name: one.replicas for one in before}
    if spec.paused and known:
        # Nothing rolls; the one ReplicaSet that there is, if it is one, is scaled
        target = {before[0].name: desired} if len(before) == 1 else sizes
    else:
        pods = {name: population(name) for name in sizes}
        target = next_step(desired, spec.strategy or Strategy(), new, sizes, pods)
    result = []
    for name, size in sorted(target.items(), key=lambda pair: pair[0] == new):
        held = known.get(name)
        if held is None or (name == new and held.template != spec.template):
            namespace = workload.metadata.namespace or "default"
            held = ReplicaSet(namespace, workload.metadata.name, name, size, spec.template)
        elif held.replicas != size:
            held = ReplicaSet(held.namespace, held.deployment, name, size, held.template)
        if size or sizes.get(name) or name == new or population(name).leaving:
            result.append(held)
    return tuple(result)


def finished(deployment: Sequence[ReplicaSet], desired: int) -> bool:
    """Whether no further step will change the ReplicaSets."""
    return bool(deployment) and deployment[-1].replicas == desired and not any(one.replicas for one in deployment[:-1])
