#!/usr/bin/env python3
"""Write ``emulator/cluster/kubernetes.json``: the fields of every Kubernetes kind, from the upstream OpenAPI.

Run it when a new Kubernetes release is to be supported, in an environment with ``kubernetes-validate``
(the OpenAPI definitions) and ``lightkube`` with ``lightkube-models`` (which kinds can be created, their
plurals and scopes). Neither is needed to run cnilab: the one weighs 108 MB, the other imports an HTTP client.

A type is written as text: ``s`` string, ``b`` boolean, ``i`` 32-bit integer, ``l`` 64-bit integer,
``n`` number, ``q`` quantity, ``p`` port or percentage (integer or string), ``*`` anything, ``[x`` list of x,
``{x`` map to x, any other the name of an object type. A leading ``!`` marks a required field.
"""

from __future__ import annotations

import argparse
import importlib
import json
import pkgutil
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
from lightkube import resources
from lightkube.core.resource import GlobalResource, NamespacedResource

SPECIAL = {
    "io.k8s.apimachinery.pkg.util.intstr.IntOrString": "p",
    "io.k8s.apimachinery.pkg.api.resource.Quantity": "q",
    "io.k8s.apimachinery.pkg.apis.meta.v1.Time": "s",
    "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime": "s",
}
SIMPLE = {"string": "s", "boolean": "b", "number": "n", "object": "*"}


def short(name: str) -> str:
    """``io.k8s.api.core.v1.Pod`` as ``core.v1.Pod``."""
    return ".".join(name.split(".")[-3:])


def written(schema: dict[str, Any], definitions: dict[str, Any], wanted: list[str]) -> str:
    """One schema as type text; object types that it needs are appended to ``wanted``."""
    reference = schema.get("$ref", "").removeprefix("#/$defs/")
    if reference:
        if reference in SPECIAL:
            return SPECIAL[reference]
        if not definitions[reference].get("properties"):
            return "*"
        wanted.append(reference)
        return short(reference)
    kinds = schema.get("type", "object")
    kind = next((k for k in kinds if k != "null"), "object") if isinstance(kinds, list) else kinds
    if kind == "array":
        return "[" + written(schema["items"], definitions, wanted)
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return "{" + written(schema["additionalProperties"], definitions, wanted)
    if kind == "integer":
        return "i" if schema.get("format") == "int32" else "l"
    return SIMPLE[kind]


def creatable() -> dict[tuple[str, str, str], tuple[str, bool]]:
    """Group, version and kind of what can be created, with plural and whether it is namespaced."""
    found = {}
    for module in pkgutil.iter_modules(resources.__path__):
        for value in vars(importlib.import_module(f"lightkube.resources.{module.name}")).values():
            info = getattr(value, "_api_info", None)
            if info is not None and info.parent is None and "post" in info.verbs:
                definition = info.resource
                if issubclass(value, NamespacedResource | GlobalResource):
                    found[definition.group, definition.version, definition.kind] = (
                        info.plural,
                        issubclass(value, NamespacedResource),
                    )
    return found


def main() -> None:
    """Write the file, or with ``--check`` only say whether it is current."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--release", default="1.37.0", help="Kubernetes release (default %(default)s)")
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 if the file differs")
    options = parser.parse_args()
    folder = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema" / f"v{options.release}-local-strict"
    definitions = json.loads((folder / "_definitions.json").read_text())["$defs"]

    kinds, wanted = {}, []
    scopes = creatable()
    for name, definition in definitions.items():
        for known in definition.get("x-kubernetes-group-version-kind", ()):
            key = known["group"], known["version"], known["kind"]
            if key in scopes:
                plural, namespaced = scopes[key]
                kinds["/".join(key)] = [short(name), plural, namespaced]
                wanted.append(name)
    types: dict[str, dict[str, str]] = {}
    for name in wanted:  # grows while it is gone through
        if short(name) in types:
            continue
        definition = definitions[name]
        required = definition.get("required", ())
        types[short(name)] = {
            field: ("!" if field in required else "") + written(schema, definitions, wanted)
            for field, schema in definition["properties"].items()
        }
    target = Path(__file__).resolve().parent.parent / "emulator" / "cluster" / "kubernetes.json"
    lines = [
        f" {json.dumps(name)}: {json.dumps(fields, separators=(',', ':'))}" for name, fields in sorted(types.items())
    ]
    rows = [f" {json.dumps(name)}: {json.dumps(row)}" for name, row in sorted(kinds.items())]
    text = "{\n" + f'"release": "{options.release}",\n"kinds": {{\n' + ",\n".join(rows)
    text += '\n},\n"types": {\n' + ",\n".join(lines) + "\n}\n}\n"
    if options.check:
        sys.exit(0 if target.read_text() == text else f"{target} is not that of Kubernetes {options.release}")
    target.write_text(text)


if __name__ == "__main__":
    main()
