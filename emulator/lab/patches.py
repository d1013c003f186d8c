"""Patches of Kubernetes objects: JSON merge patch, and strategic merge patch, which merges lists by key.

The keys are those that the API's types declare (``patchMergeKey`` in k8s.io/api core/v1, networking/v1, discovery/v1);
every other list is replaced as a whole. Directives: ``$patch: delete``, ``$patch: replace`` and
``$deleteFromPrimitiveList/...``; the order that ``$setElementOrder/...`` asks for has no meaning here.
"""

from __future__ import annotations

from typing import Any

# By the name of the list's field. A list is merged by the first key that all its elements have.
_MERGE_KEYS: dict[str, tuple[str, ...]] = {
    "containers": ("name",),
    "initContainers": ("name",),
    "ephemeralContainers": ("name",),
    "env": ("name",),
    "volumes": ("name",),
    "volumeMounts": ("mountPath",),
    "volumeDevices": ("devicePath",),
    "imagePullSecrets": ("name",),
    "secrets": ("name",),
    "hostAliases": ("ip",),
    "ownerReferences": ("uid", "name"),
    "conditions": ("type",),
    "ports": ("containerPort", "port"),
    "topologySpreadConstraints": ("topologyKey",),
}
_MERGED_LISTS = ("finalizers",)  # of plain values, merged as sets
_DIRECTIVE = "$patch"
_FROM_LIST = "$deleteFromPrimitiveList/"


def merge(target: Any, patch: Any) -> Any:
    """RFC 7386, JSON merge patch."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge(result.get(key), value)
    return result


def strategic_merge(target: Any, patch: Any, field: str = "") -> Any:
    """``target`` changed as ``patch`` says, which stands in the field of that name."""
    if isinstance(patch, list):
        return _merged_list(target if isinstance(target, list) else [], patch, field)
    if not isinstance(patch, dict):
        return patch
    if patch.get(_DIRECTIVE) == "replace":
        return {key: value for key, value in patch.items() if key != _DIRECTIVE}
    if patch.get(_DIRECTIVE) == "delete":
        return {}
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if key.startswith(_FROM_LIST):
            name = key.removeprefix(_FROM_LIST)
            result[name] = [item for item in result.get(name) or () if item not in (value or ())]
        elif key.startswith("$"):
            continue
        elif value is None:
            result.pop(key, None)
        else:
            result[key] = strategic_merge(result.get(key), value, key)
    return result


def _merged_list(target: list[Any], patch: list[Any], field: str) -> list[Any]:
    if field in _MERGED_LISTS:
        return [*target, *(item for item in patch if item not in target)]
    if {_DIRECTIVE: "replace"} in patch:
        return [item for item in patch if item != {_DIRECTIVE: "replace"}]
    key = next((key for key in _MERGE_KEYS.get(field, ()) if all(_has(item, key) for item in (*target, *patch))), None)
    if key is None:
        return patch
    result = list(target)
    for item in patch:
        at = next((place for place, known in enumerate(result) if known[key] == item[key]), None)
        if item.get(_DIRECTIVE) == "delete":
            if at is not None:
                del result[at]
        elif at is None:
            result.append(strategic_merge({}, item))
        else:
            result[at] = strategic_merge(result[at], item)
    return result


def _has(item: Any, key: str) -> bool:
    return isinstance(item, dict) and key in item
