"""flanneld's command line: what the manifest's DaemonSet gives it, ``kube-flannel-ds`` or, with Canal, ``canal``.

Options come as arguments, as Go's package flag takes them, or as variables ``FLANNELD_…`` for those that are not among
the arguments. Only which interface and address flanneld takes is emulated; an option that would change something else
is refused by name, and one that flanneld does not know as well.

Sources: flannel-io/flannel main.go, Documentation/configuration.md, Documentation/kube-flannel.yml; coreos/pkg
flagutil.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from emulator.cluster.decode import near
from emulator.cluster.model import Cluster, Container
from emulator.cluster.system_pods import containers, environment
from emulator.cluster.validation import forbidden, invalid, parse_address, required
from emulator.cni.go_regexp import compile_pattern
from emulator.errors import ManifestError, Problem

CONTAINER = "kube-flannel"
PROGRAM = "flanneld"
PREFIX = "FLANNELD_"

_CHOICE = ("iface", "iface-regex", "iface-can-reach", "public-ip", "public-ipv6")
_MANIFEST = ("ip-masq", "kube-subnet-mgr")  # what the manifest gives, and what is emulated
_SWITCHES = ("ip-masq", "kube-subnet-mgr", "version", "set-node-network-unavailable", "iptables-forward-rules")
# Of no consequence for packets.
_HARMLESS = (
    "etcd-endpoints", "etcd-prefix", "etcd-keyfile", "etcd-certfile", "etcd-cafile", "etcd-username", "etcd-password",
    "kube-api-url", "kubeconfig-file", "healthz-ip", "healthz-port", "iptables-resync", "subnet-lease-renew-margin",
    "set-node-network-unavailable", "v", "vmodule", "log_backtrace_at",
)  # fmt: skip
_NOT_EMULATED = (
    "subnet-file", "net-config-path", "kube-annotation-prefix", "version", "iptables-forward-rules", "listen", "remote",
)  # fmt: skip
KNOWN = (*_CHOICE, *_MANIFEST, *_HARMLESS, *_NOT_EMULATED)
_TRUE, _FALSE = ("1", "t", "T", "true", "TRUE", "True"), ("0", "f", "F", "false", "FALSE", "False")  # strconv.ParseBool


@dataclass(frozen=True)
class Options:
    """What decides on the interface. The first two are tried in turn. ``place`` is the manifest's object and field, for
    messages."""

    ifaces: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()
    can_reach: str = ""
    public: str = ""
    public_v6: str = ""
    place: tuple[str, str] = ("", "")

    def refuse(self, reason: str) -> ManifestError:
        """The error that says what is wrong with these options."""
        return ManifestError([Problem("", *self.place, reason)])


def read_options(cluster: Cluster, daemon_set: str, more: Mapping[str, str] | None = None) -> dict[str, Options]:
    """By node, what its flanneld is told. On nodes without a pod of the DaemonSet it is what the shipped manifest says;
    ``more`` are variables that the manifest takes from elsewhere. Raises ManifestError."""
    made: dict[Container, Options] = {}
    found: dict[str, Options] = {}
    given = containers(cluster, daemon_set, CONTAINER)
    for node in cluster.nodes:
        container = given.get(node.name, _SHIPPED)
        if container not in made:
            made[container] = _Reader(daemon_set).read(container, more or {})
        found[node.name] = made[container]
    return found


class _Reader:
    def __init__(self, daemon_set: str) -> None:
        self._place = (f"DaemonSet {daemon_set}", f"spec.template.spec.containers[{CONTAINER}]")
        self._problems: list[Problem] = []

    def read(self, container: Container, more: Mapping[str, str]) -> Options:
        given = self._arguments(container)
        for name, value in {**more, **environment(container)}.items():
            option = name.removeprefix(PREFIX).lower().replace("_", "-")
            if name.startswith(PREFIX) and option in KNOWN and option not in given:
                given[option] = [value]
        for name in _MANIFEST:
            if not self._switched_on(given.get(name, [])):
                self._fault("args", required(f"--{name}: flanneld without it is not emulated"))
        for value in given.get("iface-regex", ()):
            try:
                compile_pattern(value)
            except ValueError as error:
                self._fault("args", invalid(value, f"--iface-regex {error}"))
        for name in (name for name in given if name in _NOT_EMULATED):
            self._fault("args", forbidden(f"--{name} is not emulated"))
        for name in ("iface-can-reach", "public-ip", "public-ipv6"):
            for value in given.get(name, [])[-1:]:
                address = parse_address(value)
                if value and (address is None or (name != "iface-can-reach" and address.version != _VERSION[name])):
                    self._fault("args", invalid(value, f"--{name} must be an {_WHAT[name]} address"))
        if self._problems:
            raise ManifestError(self._problems)
        return Options(
            ifaces=tuple(given.get("iface", ())),
            patterns=tuple(given.get("iface-regex", ())),
            can_reach=_last(given, "iface-can-reach"),
            public=_last(given, "public-ip"),
            public_v6=_last(given, "public-ipv6"),
            place=(self._place[0], f"{self._place[1]}.args"),
        )

    def _arguments(self, container: Container) -> dict[str, list[str]]:
        """The options by name, each value in its order."""
        words: Sequence[str] = container.arguments
        if container.command:
            program, *words = container.command
            if program.rpartition("/")[2] != PROGRAM:
                self._fault("command", invalid(program, f"only {PROGRAM} itself is emulated, not what may start it"))
                return {name: ["true"] for name in _MANIFEST}
        given: dict[str, list[str]] = {}
        rest = list(words)
        while rest:
            word = rest.pop(0)
            if not word.startswith("-") or word in ("-", "--"):
                break  # the first word that is no option ends them
            name, equals, value = word.removeprefix("-").removeprefix("-").partition("=")
            if name not in KNOWN:
                self._fault("args", invalid(word, f"{PROGRAM} has no such option{near(name, list(KNOWN))}"))
                continue
            if not equals and name not in _SWITCHES:
                if not rest:
                    self._fault("args", invalid(word, "needs a value"))
                    continue
                value = rest.pop(0)
            given.setdefault(name, []).append(value if equals or name not in _SWITCHES else "true")
        return given

    def _switched_on(self, values: Sequence[str]) -> bool:
        value = values[-1] if values else "false"
        if value not in (*_TRUE, *_FALSE):
            self._fault("args", invalid(value, "must be true or false"))
        return value in _TRUE

    def _fault(self, field: str, reason: str) -> None:
        self._problems.append(Problem("", self._place[0], f"{self._place[1]}.{field}", reason))


_SHIPPED = Container(CONTAINER, command=(f"/opt/bin/{PROGRAM}", "--ip-masq", "--kube-subnet-mgr"))
_VERSION = {"public-ip": 4, "public-ipv6": 6}
_WHAT = {"iface-can-reach": "IP", "public-ip": "IPv4", "public-ipv6": "IPv6"}


def _last(given: Mapping[str, Sequence[str]], name: str) -> str:
    return (given.get(name) or [""])[-1]
