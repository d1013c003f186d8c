"""The fields that each Kubernetes kind has, as msgspec structs compiled when a kind is first met.

``kubernetes.json`` holds the upstream field tables (``scripts/kubernetes_schema.py`` writes it from the
OpenAPI definitions). Compiled with ``forbid_unknown_fields``, they check an object as strictly as the API
server does with ``fieldValidation: Strict``.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Annotated, Any

import msgspec

from emulator.cluster.decode import Fault, faults_in

# k8s.io/apimachinery/pkg/api/resource: the message of a quantity that does not parse
QUANTITY_PATTERN = r"^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$"

_SCALARS: dict[str, Any] = {
    "s": str,
    "b": bool,
    "i": Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)],
    "l": Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)],
    "n": float,
    "q": int | float | Annotated[str, msgspec.Meta(pattern=QUANTITY_PATTERN)],
    "p": int | str,
    "*": Any,
}


class KindEntry(msgspec.Struct, frozen=True, array_like=True):
    """A kind in ``kubernetes.json``: the name of its type, its plural, whether it is namespaced."""

    type: str
    plural: str
    namespaced: bool


class _Tables(msgspec.Struct, frozen=True):
    release: str
    kinds: dict[str, KindEntry]
    types: dict[str, dict[str, str]]


@cache
def _tables() -> _Tables:
    return msgspec.json.decode(files(__package__).joinpath("kubernetes.json").read_bytes(), type=_Tables)


def kubernetes_release() -> str:
    """The Kubernetes release that the field tables are from, ``1.37.0``."""
    return _tables().release


def upstream_kind(api_version: str, kind: str) -> KindEntry | None:
    """What upstream Kubernetes knows of a kind; None for custom resources and retired versions."""
    # The core group's apiVersion is "v1", its key "/v1/Pod"
    key = f"{api_version}/{kind}" if "/" in api_version else f"/{api_version}/{kind}"
    return _tables().kinds.get(key)


def field_faults(thing: dict[str, Any], entry: KindEntry) -> list[Fault]:
    """Unknown fields, wrong types and missing required fields of an object, by field path."""
    return faults_in(thing, _struct(entry.type, top=True))


@cache
def _struct(name: str, top: bool = False) -> type[Any]:
    """The struct of an object type. A ``status`` at the ``top`` may be anything: it is not the creator's to give."""
    fields: list[Any] = []
    names = {}
    for index, (field, written) in enumerate(_tables().types[name].items()):
        # Fields such as "from", "$ref" or "x-kubernetes-list-type" are no Python names: number them
        python_name = f"f{index}"
        names[python_name] = field
        if written.startswith("!"):
            fields.append((python_name, _type(written[1:], name)))
        else:
            kind = Any if top and field == "status" else _type(written, name) | None
            fields.append((python_name, kind, None))
    return msgspec.defstruct(
        name.rpartition(".")[2], fields, rename=names, forbid_unknown_fields=True, gc=False, kw_only=True
    )


def _type(written: str, inside: str) -> Any:
    if written in _SCALARS:
        return _SCALARS[written]
    if written[0] == "[":
        return list.__class_getitem__(_type(written[1:], inside))
    if written[0] == "{":
        # A null in a map is an empty value: "annotations: {a: }" is in many a chart
        return dict.__class_getitem__((str, _type(written[1:], inside) | None))
    # JSONSchemaProps contains itself; one level of it is checked, deeper ones are taken as they are
    return dict[str, Any] if written == inside else _struct(written)
