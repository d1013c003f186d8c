"""Manifests: what is read, what is completed, and what is refused in the API server's words."""

# ruff: noqa: E501 (tables of messages, one case per line)

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from emulator.cluster.manifests import load, load_manifests, parse, validate, validate_objects
from emulator.errors import ManifestError

POD = """
apiVersion: v1
kind: Pod
metadata: {name: a}
spec:
  containers:
    - {name: c, image: nginx}
"""
DEPLOYMENT = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
        - name: c
          image: nginx
          ports: [{containerPort: 80, name: http}]
"""
# As charts write them: every part of it has to be accepted, whether it matters to the network or not
REAL_WORLD = """
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
  creationTimestamp: null
  labels: {app.kubernetes.io/name: web, app.kubernetes.io/version: "1.27"}
  annotations: {checksum/config: 9f86d081884c7d65, prometheus.io/scrape: "true", note: }
spec:
  replicas: 2
  revisionHistoryLimit: 3
  strategy: {type: RollingUpdate, rollingUpdate: {maxUnavailable: 25%, maxSurge: 1}}
  selector: {matchLabels: {app: web}, matchExpressions: [{key: tier, operator: In, values: [front]}]}
  template:
    metadata: {labels: {app: web, tier: front}}
    spec:
      serviceAccountName: web
      securityContext: {runAsNonRoot: true, fsGroup: 1000, seccompProfile: {type: RuntimeDefault}}
      affinity:
        podAntiAffinity:
          preferredDuringSchedulingIgnoredDuringExecution:
            - weight: 100
              podAffinityTerm: {topologyKey: kubernetes.io/hostname, labelSelector: {matchLabels: {app: web}}}
      topologySpreadConstraints:
        - {maxSkew: 1, topologyKey: topology.kubernetes.io/zone, whenUnsatisfiable: ScheduleAnyway}
      tolerations: [{key: dedicated, operator: Exists, effect: NoSchedule}]
      initContainers:
        - {name: wait, image: busybox, command: [sh, -c, "until nslookup db; do sleep 1; done"]}
      containers:
        - name: web
          image: ghcr.io/example/web@sha256:0000000000000000000000000000000000000000000000000000000000000000
          imagePullPolicy: IfNotPresent
          args: ["--listen=:8080"]
          env:
            - {name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
            - {name: MODE, value: "on"}
          envFrom: [{configMapRef: {name: web, optional: true}}]
          ports: [{containerPort: 8080, name: http}, {containerPort: 8080, name: http-udp, protocol: UDP}]
          livenessProbe: {httpGet: {path: /healthz, port: http, scheme: HTTP}, periodSeconds: 10}
          readinessProbe: {tcpSocket: {port: 8080}, initialDelaySeconds: 3}
          startupProbe: {exec: {command: ["true"]}, failureThreshold: 30}
          lifecycle: {preStop: {exec: {command: [sleep, "5"]}}}
          resources: {requests: {cpu: 100m, memory: 64Mi}, limits: {cpu: 1, memory: 1.5Gi}}
          securityContext: {capabilities: {drop: [ALL], add: [NET_BIND_SERVICE]}, readOnlyRootFilesystem: true}
          volumeMounts: [{name: config, mountPath: /etc/web, readOnly: true}, {name: tmp, mountPath: /tmp}]
      volumes:
        - {name: config, configMap: {name: web, defaultMode: 0644}}
        - {name: tmp, emptyDir: {}}
status: {}
"""


def refusals(text: str) -> list[str]:
    with pytest.raises(ManifestError) as error:
        parse(text, "m.yaml")
    assert error.value.exit_code == 2
    return [str(problem) for problem in error.value.problems]


def test_a_manifest_as_charts_write_them_is_accepted() -> None:
    (thing,) = parse(REAL_WORLD).objects
    assert thing["metadata"]["annotations"]["note"] == ""
    assert thing["spec"]["template"]["spec"]["volumes"][0]["configMap"]["defaultMode"] == 0o644


def test_defaults_are_filled_in() -> None:
    (thing,) = parse(DEPLOYMENT).objects
    assert thing["metadata"]["namespace"] == "default"
    assert thing["spec"]["replicas"] == 1
    assert thing["spec"]["template"]["spec"]["containers"][0]["ports"][0]["protocol"] == "TCP"


def test_cluster_scoped_objects_have_no_namespace() -> None:
    text = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, namespace: shop}"
    assert "namespace" not in parse(text).objects[0]["metadata"]


def test_objects_given_by_the_api_are_not_changed_themselves() -> None:
    given: dict[str, Any] = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}}
    (checked,) = validate_objects([given])
    assert checked["metadata"]["namespace"] == "default"
    assert given["metadata"] == {"name": "a"}


def test_objects_that_share_an_anchor_do_not_share_their_values() -> None:
    text = "kind: List\napiVersion: v1\nitems:\n- {apiVersion: v1, kind: ConfigMap, metadata: {name: a}, data: &d {x: y}}\n"
    text += "- {apiVersion: v1, kind: ConfigMap, metadata: {name: b}, data: *d}"
    one, other = parse(text).objects
    assert one["data"] == other["data"]
    assert one["data"] is not other["data"]


def test_a_generated_name_is_made_from_its_prefix() -> None:
    (thing,) = parse(POD.replace("name: a", "generateName: a-")).objects
    assert thing["metadata"]["name"].startswith("a-")
    assert len(thing["metadata"]["name"]) == 7


def test_kinds_without_effect_are_kept_and_told_once() -> None:
    job = "spec: {template: {spec: {restartPolicy: Never, containers: [{name: c, image: x}]}}}"
    text = "\n---\n".join(
        [
            *(f"apiVersion: batch/v1\nkind: Job\nmetadata: {{name: {name}}}\n{job}" for name in "ab"),
            *(f"apiVersion: example.com/v1\nkind: Widget\nmetadata: {{name: {name}}}\nspec: {{x: 1}}" for name in "ab"),
            "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {ports: [{port: 80}]}",
        ]
    )
    loaded = parse(text)
    assert len(loaded.objects) == 5
    assert loaded.notices == [
        "Job (batch/v1) has no effect on the emulated network: kept as it is",
        "Widget (example.com/v1) is not a kind of Kubernetes 1.37: kept as it is, its fields were not checked",
    ]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("containers:", "contaners:", 'spec.template.spec.contaners: unknown field "spec.template.spec.contaners", did you mean "containers"?'),
        ("containerPort: 80", "containerport: 80", 'unknown field "spec.template.spec.containers[0].ports[0].containerport", did you mean "containerPort"?'),
        ("image: nginx", "imagge: nginx", "unknown field"),
        ("image: nginx", "image: ''", "spec.template.spec.containers[0].image: Required value"),
        ("name: c\n", "name: C\n", "spec.template.spec.containers[0].name: Invalid value: \"C\""),
        ("containerPort: 80,", "containerPort: 0,", "spec.template.spec.containers[0].ports[0].containerPort: Required value"),
        ("containerPort: 80,", "containerPort: 70000,", "Invalid value: 70000: must be between 1 and 65535, inclusive"),
        ("containerPort: 80,", "containerPort: '80',", 'expected a whole number, got the string "80"'),
        ("containerPort: 80,", "containerPort: 80, protocol: ICMP,", 'Unsupported value: "ICMP": supported values: "SCTP", "TCP", "UDP"'),
        ("name: http}", "name: sixteen-letters-x}", "must be no more than 15 characters"),
        ("[{containerPort: 80, name: http}]", "[{containerPort: 80, name: http}, {containerPort: 81, name: http}]",
         'ports[1].name: Duplicate value: "http"'),
        ("[{containerPort: 80, name: http}]", "[{containerPort: 80, hostPort: 80}, {containerPort: 81, hostPort: 80}]",
         'ports[1].hostPort: Duplicate value: "TCP//80"'),
        ("labels: {app: web}", "labels: {app: wob}", "spec.template.metadata.labels: Invalid value: {\"app\": \"wob\"}: `selector` does not match template `labels`"),
        ("labels: {app: web}", "labels: {app: 1}", "spec.template.metadata.labels.app: expected a string, got the number 1; put it in quotes"),
        ("labels: {app: web}", 'labels: {app: "a\\nb"}', "a valid label must be an empty string"),
        ("  selector: {matchLabels: {app: web}}\n", "", "spec.selector: Required value"),
        ("selector: {matchLabels: {app: web}}", "selector: {}", "spec.selector: Invalid value: {}: empty selector is invalid for deployment"),
        ("selector: {matchLabels: {app: web}}", "selector: {matchExpressions: [{key: app, operator: Is}]}", "not a valid selector operator"),
        ("spec:\n  selector", "spec:\n  replicas: -1\n  selector", "spec.replicas: Invalid value: -1: must be greater than or equal to 0"),
        ("spec:\n  selector", "spec:\n  replicas: 2147483648\n  selector", "must be between -2147483648 and 2147483647"),
        ("      containers:", "      restartPolicy: Never\n      containers:", 'restartPolicy: Unsupported value: "Never": supported values: "Always"'),
        ("      containers:", "      dnsPolicy: Some\n      containers:", 'dnsPolicy: Unsupported value: "Some"'),
        ("      containers:", "      dnsPolicy: None\n      containers:", "must provide at least one DNS nameserver when `dnsPolicy` is None"),
        ("      containers:", "      hostname: a.b\n      containers:", "spec.template.spec.hostname: Invalid value"),
        ("      containers:", "      nodeSelector: {a: 'b c'}\n      containers:", "spec.template.spec.nodeSelector: Invalid value"),
        ("name: web}\nspec", "name: Web}\nspec", "metadata.name: Invalid value: \"Web\": a lowercase RFC 1123 subdomain"),
        ("name: web}\nspec", "name: ../../x}\nspec", "metadata.name: Invalid value"),
        ("name: web}\nspec", "name: a;reboot}\nspec", "metadata.name: Invalid value"),
        ("name: web}\nspec", "name: 5}\nspec", "metadata.name: expected a string, got the number 5; put it in quotes"),
        ("name: web}\nspec", "labels: {a: b}}\nspec", "metadata.name: Required value: name or generateName is required"),
        ("name: web}\nspec", "name: web, namespace: shop}\nspec", 'metadata.namespace: namespaces "shop" not found'),
        ("name: web}\nspec", "name: web, namespace: a/b}\nspec", "metadata.namespace: Invalid value"),
        ("apiVersion: apps/v1", "apiVersion: extensions/v1beta1", 'no matches for kind "Deployment" in version "extensions/v1beta1"'),
        ("apiVersion: apps/v1\n", "", "apiVersion: Required value"),
        ("kind: Deployment\n", "", "kind: Required value"),
        ("kind: Deployment\n", "kind: [x]\n", "kind: must be a string"),
    ],
)  # fmt: skip
def test_a_fault_of_a_deployment_is_told_as_the_api_server_tells_it(old: str, new: str, expected: str) -> None:
    assert old in DEPLOYMENT
    found = refusals(DEPLOYMENT.replace(old, new, 1))
    assert any(expected in line for line in found), found
    assert all(line.startswith("m.yaml: ") for line in found)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("{}", "spec.containers: Required value"),
        ("{containers: []}", "spec.containers: Required value"),
        ("{containers: [{name: c, image: x}, {name: c, image: x}]}", 'spec.containers[1].name: Duplicate value: "c"'),
        ("{containers: [{name: c, image: x}], initContainers: [{name: c, image: x}]}",
         'spec.initContainers[0].name: Duplicate value: "c"'),
        ("{containers: [{name: c, image: x}], restartPolicy: Sometimes}", 'spec.restartPolicy: Unsupported value: "Sometimes"'),
        ("{hostNetwork: true, containers: [{name: c, image: x, ports: [{containerPort: 80, hostPort: 81}]}]}",
         "must match `containerPort` when `hostNetwork` is true"),
        ("{containers: [{name: c, image: x, volumeMounts: [{name: v, mountPath: /v}]}]}",
         'spec.containers[0].volumeMounts[0].name: Not found: "v"'),
        ("{containers: [{name: c, image: x, resources: {limits: {cpu: a lot}}}]}", "must match the regular expression"),
        ("{containers: [{name: c, image: x, env: [{name: ''}]}]}", "spec.containers[0].env[0].name: Required value"),
        ("{containers: [{name: c, image: x}], hostAliases: [{ip: x}]}", "must be a valid IP address"),
        ("{containers: {name: c}}", "spec.containers: expected a list, got a mapping"),
    ],
)  # fmt: skip
def test_a_fault_of_a_pod_is_told_as_the_api_server_tells_it(spec: str, expected: str) -> None:
    found = refusals(f"apiVersion: v1\nkind: Pod\nmetadata: {{name: a}}\nspec: {spec}")
    assert any(expected in line for line in found), found


def test_a_problem_names_file_object_field_and_reason() -> None:
    (line,) = refusals(POD.replace("image: nginx", "image: ''"))
    assert line == "m.yaml: Pod default/a: spec.containers[0].image: Required value"


def test_every_problem_of_every_object_is_told() -> None:
    assert len(refusals(POD.replace("nginx", "''") + "---" + DEPLOYMENT.replace("nginx", "''") + "---\n5")) == 3


def test_the_same_object_twice_is_refused() -> None:
    (line,) = refusals(POD + "---" + POD)
    assert 'metadata.name: Duplicate value: "a": this object is in m.yaml already' in line


def test_equal_names_of_different_kinds_or_namespaces_are_fine() -> None:
    text = POD + "---" + POD.replace("name: a", "name: a, namespace: kube-system")
    text += "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}"
    assert len(parse(text).objects) == 3


def test_a_namespace_of_the_same_load_counts_wherever_it_stands() -> None:
    text = POD.replace("name: a", "name: a, namespace: shop")
    assert parse(text + "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: shop}").objects
    assert parse(text, namespaces=["shop"]).objects


def test_lists_are_taken_apart() -> None:
    items = [{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}} for name in "ab"]
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
    assert [thing["metadata"]["name"] for thing in parse(text, "x.json").objects] == ["a", "b"]
    assert len(validate([json.loads(text)]).objects) == 2


def test_a_folder_is_read_in_order_and_to_its_depths(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.yml").write_text(POD.replace("name: a", "name: b"))
    (tmp_path / "a.yaml").write_text(POD)
    (tmp_path / "sub" / "c.json").write_text('{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}}')
    (tmp_path / "notes.txt").write_text("not a manifest")
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)
    assert [thing["metadata"]["name"] for thing in load_manifests([tmp_path])] == ["a", "b", "c"]


def test_standard_input_is_a_dash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(POD.encode())))
    assert [thing["kind"] for thing in load_manifests(["-"])] == ["Pod"]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.yaml", b"a: [", "not valid YAML"),
        ("a.yaml", b"\xff", "line 1: not UTF-8 text"),
        ("a.json", b"{", "not valid JSON"),
        ("a.json", b'{"a": 1, "a": 2}', 'key "a" is given twice'),
        ("a.json", b'{"a": NaN}', "not valid JSON: NaN"),
        ("a.json", b"[" * 100_000, "nested too deep"),
        ("a.json", b"[" * 101 + b"]" * 101, "nested more than 100 levels deep"),
        ("a.json", b'{"a": 1e999}', "the number 1e999 is too large"),
        ("a.yaml", b"just text", "not a Kubernetes object: a mapping is expected"),
        ("a.yaml", b'a: "\\ud800"', ""),
    ],
)
def test_a_file_that_holds_no_objects_is_refused(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ManifestError) as error:
        load([path])
    assert expected in str(error.value)
    assert str(error.value).startswith(str(path))


def test_a_path_that_is_not_there_and_an_empty_folder_are_told_together(tmp_path: Path) -> None:
    with pytest.raises(ManifestError) as error:
        load([tmp_path / "nope.yaml", tmp_path, "a\0b"])
    assert [problem.reason for problem in error.value.problems] == [
        "No such file or directory",
        "the folder has no .yaml, .yml, .json file",
        "embedded null byte",
    ]


def test_ten_thousand_objects_are_told_apart_quickly() -> None:
    things = [{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": f"c{n}"}} for n in range(10_000)]
    assert len(validate(things).objects) == 10_000


@pytest.mark.parametrize(
    "value",
    [
        "1",
        "-0",
        "1.50",
        "1e3",
        "123456789012345678901234567890",
        '"22:22"',
        '"a\\u00e9\\n"',
        "[[]]",
        '{"<<": {"a": null}}',
    ],
)
def test_json_among_yaml_reads_as_yaml_does(value: str) -> None:
    text = f'\n{{"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {{"name": "a"}}, "spec": {value}}}'

    (quick,) = parse(text).objects

    (slow,) = parse(f"# not JSON\n{text}").objects
    assert quick == slow
    assert repr(quick["spec"]) == repr(slow["spec"])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"kind": "Pod",\n "kind": "Pod"}', 'line 2: key "kind" is given twice'),
        ('\n{"a": ' + "[" * 100 + "]" * 100 + "}", "line 2: nested more than 100 levels deep"),
        ('{"a": ' + "[" * 50_000, "line 1: nested more than 100 levels deep"),
        ('{"a": "\x01"}', "control characters are not allowed"),
        ('\n\n{"kind": "Pod"}', "line 3: apiVersion"),
    ],
)
def test_json_among_yaml_is_refused_as_yaml_is(text: str, reason: str) -> None:
    with pytest.raises(ManifestError) as caught:
        parse(text)
    assert reason in str(caught.value)


def test_a_scenario_among_manifests_is_called_one() -> None:
    with pytest.raises(ManifestError) as caught:
        parse("name: a\ntopology: three-nodes\nsteps: []\n")
    assert "line 1: a scenario, not a Kubernetes object: `cnilab run` plays it" in str(caught.value)
