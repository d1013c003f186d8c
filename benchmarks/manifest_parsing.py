#!/usr/bin/env python3
"""Which library should check Kubernetes manifests? 10,000 Pods, parsed and checked by each candidate.

Run it with ``python benchmarks/manifest_parsing.py``; candidates that are not installed are left out
(``pip install pydantic lightkube lightkube-models kubernetes-validate``). The result that decided is the
table in ``docs/dependencies.md``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import cache
from typing import Any

from emulator.cluster.manifests import parse, validate
from emulator.cluster.schema import _struct, _tables, field_faults, upstream_kind

Check = Callable[[dict[str, Any]], str]

POD = """apiVersion: v1
kind: Pod
metadata:
  name: web-{number}
  labels: {{app: web, tier: front}}
spec:
  serviceAccountName: web
  containers:
    - name: web
      image: nginx:1.27
      ports: [{{containerPort: 8080, name: http}}]
      env: [{{name: MODE, value: production}}]
      readinessProbe: {{httpGet: {{path: /healthz, port: http}}}}
      resources: {{requests: {{cpu: 100m, memory: 64Mi}}, limits: {{cpu: 1, memory: 128Mi}}}}
      volumeMounts: [{{name: tmp, mountPath: /tmp}}]
  volumes: [{{name: tmp, emptyDir: {{}}}}]
"""


def by_msgspec() -> Check:
    """Our structs, compiled from the upstream field tables."""
    _struct.cache_clear()
    entry = upstream_kind("v1", "Pod")
    assert entry is not None
    return lambda pod: "; ".join(reason for _, reason in field_faults(pod, entry))


def by_pydantic() -> Check:
    """Models made from the same tables, with ``extra="forbid"``."""
    import pydantic

    types = _tables().types
    scalars: dict[str, Any] = {"s": str, "b": bool, "i": int, "l": int, "n": float, "q": str | int | float}
    scalars |= {"p": str | int, "*": Any}

    def kind_of(written: str, inside: str) -> Any:
        if written in scalars:
            return scalars[written]
        if written[0] == "[":
            return list.__class_getitem__(kind_of(written[1:], inside))
        if written[0] == "{":
            return dict.__class_getitem__((str, kind_of(written[1:], inside)))
        return dict[str, Any] if written == inside else model(written)

    @cache
    def model(name: str) -> Any:
        fields: dict[str, Any] = {}
        for index, (field, written) in enumerate(types[name].items()):
            if written.startswith("!"):
                fields[f"f{index}"] = (kind_of(written[1:], name), pydantic.Field(alias=field))
            else:
                fields[f"f{index}"] = (kind_of(written, name) | None, pydantic.Field(None, alias=field))
        strict = pydantic.ConfigDict(extra="forbid", strict=True)
        return pydantic.create_model(name.replace(".", "_"), __config__=strict, **fields)

    pod_model = model("core.v1.Pod")

    def check(pod: dict[str, Any]) -> str:
        try:
            pod_model.model_validate(pod)
        except pydantic.ValidationError as error:
            return str(error)
        return ""

    return check


def by_lightkube() -> Check:
    """lightkube's dataclasses; they take unknown fields and wrong types in silence."""
    from lightkube.models.core_v1 import Pod

    def check(pod: dict[str, Any]) -> str:
        Pod.from_dict(pod)
        return ""

    return check


def by_kubernetes_validate() -> Check:
    """The upstream JSON schemas by ``jsonschema``."""
    import kubernetes_validate

    def check(pod: dict[str, Any]) -> str:
        try:
            kubernetes_validate.validate(pod, "1.37", strict=True)
        except kubernetes_validate.ValidationError as error:
            return str(error.message)
        return ""

    return check


CANDIDATES: dict[str, Callable[[], Check]] = {
    "msgspec": by_msgspec,
    "pydantic": by_pydantic,
    "lightkube-models": by_lightkube,
    "kubernetes-validate": by_kubernetes_validate,
}


def main() -> None:
    """Measure and print a table, or JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--objects", type=int, default=10_000)
    parser.add_argument("--json", action="store_true", help="one JSON object per candidate")
    options = parser.parse_args()
    text = "---\n".join(POD.format(number=number) for number in range(options.objects))
    start = time.perf_counter()
    pods = parse(text).objects
    whole = time.perf_counter() - start
    start = time.perf_counter()
    validate(pods)
    checks = time.perf_counter() - start
    wrong = json.loads(json.dumps(pods[0]))
    wrong["spec"]["containers"][0]["imag"] = "nginx"
    rows = []
    for name, make in CANDIDATES.items():
        try:
            start = time.perf_counter()
            check = make()
            check(pods[0])
            first = time.perf_counter() - start
        except ImportError:
            continue
        # A second's worth is enough of the slow ones
        count, start = 0, time.perf_counter()
        while count < len(pods) and time.perf_counter() - start < 2:
            check(pods[count])
            count += 1
        spent = (time.perf_counter() - start) / count * options.objects
        rows.append({"candidate": name, "first_ms": first * 1000, "all_s": spent, "unknown_field": check(wrong)[:110]})
    if options.json:
        print(json.dumps({"objects": options.objects, "load_s": whole, "validate_s": checks, "candidates": rows}))
        return
    print(f"{options.objects} Pods: YAML to checked objects {whole:.2f} s, all rules alone {checks:.2f} s")
    print(f"{'fields by':<22}{'first object':>14}{'all':>12}  says of an unknown field")
    for row in rows:
        said = str(row["unknown_field"]).replace("\n", " ") or "nothing"
        print(f"{row['candidate']:<22}{row['first_ms']:>11.0f} ms{row['all_s']:>10.3f} s  {said}")


if __name__ == "__main__":
    main()
