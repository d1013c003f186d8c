"""The lab process: started inside the sandbox, it wires the lab, says so, and then serves the API until its end.

It reads one :class:`~emulator.lab.records.Boot` from standard input and reports on the descriptor named by
``CNILAB_STATUS_FD``, a JSON object a line: ``{"progress": text}``, then ``{"ready": true}`` or ``{"error": ...}``.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from emulator.errors import CnilabError, Unsupported
from emulator.lab.records import Boot, LabStatus

if TYPE_CHECKING:
    from emulator.balancer.model import Balancer
    from emulator.cluster.model import Cluster, Topology
    from emulator.cni.service_proxy import Beside
    from emulator.lab.runtime import Runtime

STATUS_FD = "CNILAB_STATUS_FD"
SOCKET = "api.sock"


class Reporter:
    """Tells whoever started the lab how far it is, and how long each phase took (seconds)."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._start = time.monotonic()
        self._phase = ""
        self._up = False
        self._since = self._start
        self.phases: dict[str, float] = {}

    def progress(self, text: str) -> None:
        """A new phase begins. Once the lab is up, nobody is waiting for it."""
        if self._up:
            return
        self._finish()
        self._phase = text.partition(":")[0]  # "waiting for routing: 3 of 9 routes" is one phase, not nine
        self._say({"progress": text})

    def ready(self) -> float:
        """The lab is up; returns the seconds that it took."""
        self._finish()
        self._up = True
        taken = time.monotonic() - self._start
        self._say({"ready": True, "seconds": taken})
        self._close()
        return taken

    def fail(self, error: BaseException) -> None:
        """The lab could not be wired."""
        from emulator.lab.wire import error_to_wire

        self._say({"error": error_to_wire(error)})
        self._close()

    def _finish(self) -> None:
        now = time.monotonic()
        if self._phase:
            self.phases[self._phase] = self.phases.get(self._phase, 0.0) + now - self._since
        self._since = now

    def _say(self, message: dict[str, Any]) -> None:
        if self._fd >= 0:
            try:
                os.write(self._fd, msgspec.json.encode(message) + b"\n")
            except BrokenPipeError:
                self._fd = -1  # nobody listens any more: the lifeline decides what happens to us

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def main() -> int:
    """Wire the lab of the boot record and serve it; returns the exit status."""
    reporter = Reporter(int(os.environ.pop(STATUS_FD, "-1")))
    try:
        boot = msgspec.json.decode(sys.stdin.buffer.read(), type=Boot)
        server = _wire(boot, reporter)
    except Exception as error:
        reporter.fail(error)
        if not isinstance(error, CnilabError):
            raise
        return error.exit_code
    server.serve_forever(poll_interval=3600)
    return 0


def _wire(boot: Boot, reporter: Reporter) -> Any:
    reporter.progress("starting")
    from emulator.balancer.load import load_balancer
    from emulator.cluster.addons import kubernetes_service
    from emulator.cni.policy_notes import PolicyNotes
    from emulator.cni.service_proxy import Beside
    from emulator.cni.styles import load_style, style_key
    from emulator.kernel.capabilities import probe_for_use
    from emulator.kernel.stand_ins import fitting
    from emulator.lab.api import Api
    from emulator.lab.http_server import Server
    from emulator.lab.machinery import Machinery
    from emulator.lab.pods import substitutions
    from emulator.lab.proxy_watch import ProxyWatch
    from emulator.lab.runtime import Runtime
    from emulator.lab.verbs import Verbs

    style = fitting(load_style(boot.style))

    def missing(names: Sequence[str]) -> list[str]:
        return [feature.name for feature in probe_for_use(names).values() if not feature.usable]

    proxy = Beside(boot.style, style, boot.topology, missing)
    balancer = load_balancer(boot.topology, style)
    if balancer is not None and (lacking := missing(balancer.requires)):
        names = ", ".join(lacking)
        raise Unsupported(f"{balancer.title} is not possible here: there is no {names}", features=tuple(lacking))
    machinery = Machinery(allow_missing=boot.allow_missing)
    runtime = Runtime(
        boot.topology,
        style,
        machinery,
        proxy=proxy,
        balancer=balancer,
        policy_mode=boot.policy_mode,
        addons=[kubernetes_service(boot.topology), *(_dns_addons(boot.topology) if boot.dns != "off" else [])],
        addons_at_once=boot.dns == "on",
        wire_accurate=boot.wire_accurate,
        progress=reporter.progress,
    )

    def look(*, always: bool) -> list[str]:
        with runtime.still():
            return [] if runtime.broken else machinery.applier.repair_proxy(always=always)

    policies = PolicyNotes(style)

    def unpoliced() -> tuple[str, ...]:
        return policies.labels(runtime.current, runtime.enforcement)

    runtime.start(boot.objects)
    machinery.targets.start(runtime.observe)
    watch = ProxyWatch(look)
    watch.start()
    taken = 0.0

    def status() -> LabStatus:
        cluster = runtime.current
        return LabStatus(
            name=boot.name,
            style=style_key(boot.style),
            title=style.title,
            topology=boot.topology.name,
            nodes=len(cluster.nodes),
            pods=len(cluster.pods),
            offloads="off" if boot.wire_accurate else "on",
            setup_seconds=taken,
            phases=reporter.phases,
            down_nodes=tuple(sorted(runtime.down_nodes)),
            choices={
                **machinery.choices,
                **_proxy_in(proxy, cluster),
                **_balancer_in(balancer),
                **_policies_in(runtime),
            },
            labels=(*machinery.labels, *_instead(proxy), *unpoliced()),
            daemons=machinery.daemons(),
            processes=machinery.processes(),
            faults=_faults(runtime),
            notices=(
                *substitutions(cluster.pods),
                *machinery.dns.notices,
                *watch.notices,
                *balancing(),
                *policies.notices(cluster, runtime.enforcement),
            ),
            plugin_problems=tuple(map(msgspec.to_builtins, machinery.plugin_problems())),
            broken=runtime.broken,
        )

    def balancing() -> tuple[str, ...]:
        cluster = runtime.current
        return (*cluster.pending, *(balancer.notices(cluster) if balancer is not None else ()))

    def warnings() -> list[str]:
        broken = [f"this lab is broken: {runtime.broken}"] if runtime.broken else []
        broken += [runtime.stuck] if runtime.stuck else []
        broken += runtime.current.pending
        return [*broken, *machinery.labels, *_instead(proxy), *unpoliced(), *machinery.obituaries()]

    verbs = Verbs(runtime, machinery, status).table()
    server = Server(os.path.join(boot.directory, SOCKET), Api(runtime, verbs, warnings))
    gc.freeze()  # a plan of a thousand pods is twenty thousand objects that need not be looked at again
    taken = reporter.ready()
    return server


def _dns_addons(topology: Topology) -> list[dict[str, Any]]:
    """CoreDNS' objects; none where the service CIDR has no tenth address."""
    from emulator.cluster.coredns import coredns_objects

    try:
        return coredns_objects(topology.service_cidrs[0])
    except IndexError:
        return []


def _proxy_in(beside: Beside, cluster: Cluster) -> dict[str, str]:
    """The service proxy in force, for the run's records; nothing as long as there is no work for one."""
    proxy = beside.when(cluster)
    if proxy is not None:
        return {"proxy": f"{proxy.title}, {proxy.stand_in}" if proxy.stand_in else proxy.title}
    return {"proxy": "none"} if beside.named or cluster.services else {}


def _balancer_in(balancer: Balancer | None) -> dict[str, str]:
    """What implements type LoadBalancer, for the run's records."""
    if balancer is None:
        return {}
    return {"loadBalancer": f"{balancer.title}, {balancer.stand_in}" if balancer.stand_in else balancer.title}


def _policies_in(runtime: Runtime) -> dict[str, str]:
    """What enforces network policies, as soon as there is one."""
    enforcement = runtime.enforcement
    if enforcement is None or not enforcement.compiled.policies:
        return {}
    enforcer = enforcement.enforcer
    mode = ", as the API says (--policy-mode spec)" if enforcer.mode == "spec" else ""
    return {"policies": f"{enforcer.title}{f', {enforcer.stand_in}' if enforcer.stand_in else ''}{mode}"}


def _instead(beside: Beside) -> tuple[str, ...]:
    """What does the work of the style's own service proxy, where that is not possible and there is work to do."""
    return (beside.instead,) if beside.instead else ()


def _faults(runtime: Runtime) -> tuple[str, ...]:
    """What was broken on purpose, and is."""
    down = [f"node {name} is down" for name in sorted(runtime.down_nodes)]
    cables = (f"the cable of {machine}:{device} is unplugged" for machine, device in sorted(runtime.unplugged))
    full = (f"the connection tracking of {ns.partition('/')[2]} is full" for ns in runtime.machinery.full)
    return (*down, *cables, *full, *runtime.faults)


if __name__ == "__main__":
    sys.exit(main())
