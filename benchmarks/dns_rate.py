"""How many questions a second one DNS server answers, and what a change costs, with 10,000 Services of two endpoints.

``python -m benchmarks dns`` runs it with the others; alone, ``python -m benchmarks.dns_rate [--services N]
[--seconds N]`` (no root needed). It starts the DNS process in a
private sandbox, serves one namespace, and keeps ``WINDOW`` questions under way from another, over UDP through a veth.
A line of JSON each: answers a second and the server's CPU time per answer for questions that come again (kept answers),
for ever new ones (each put together anew), and through a change of one endpoint before every window; milliseconds that
the first state of all Services takes, and one changed endpoint.
"""

from __future__ import annotations

import argparse
import itertools
import json
import socket
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.figures import Figure
from emulator.cluster.services import Endpoint, EndpointPort, EndpointSlice, Service, ServicePort
from emulator.dns.client import DnsServers
from emulator.dns.control import Place
from emulator.dns.message import question_for
from emulator.dns.server import KEPT
from emulator.kernel.sandbox import call_forked
from emulator.kernel.syscalls import inside

WINDOW = 64  # questions under way
RATE = 5_000.0  # questions a second, of one server
SERVER, CLIENT = "10.0.0.1", "10.0.0.2"


def cluster(count: int) -> tuple[list[Service], list[EndpointSlice]]:
    """``count`` Services with an address and two endpoints each."""
    services = [
        Service("default", f"s{n}", "ClusterIP", cluster_ips=(f"10.{96 + n // 65536}.{n // 256 % 256}.{n % 256}",),
                ports=(ServicePort("http", "TCP", 80, 8080),))
        for n in range(count)
    ]  # fmt: skip
    return services, [endpoints(n, (2 * n, 2 * n + 1)) for n in range(count)]


def endpoints(number: int, hosts: tuple[int, ...]) -> EndpointSlice:
    """The slice of one Service."""
    found = tuple(Endpoint(f"10.244.{host // 250 % 250}.{host % 250 + 1}") for host in hosts)
    return EndpointSlice("default", f"s{number}-x", f"s{number}", 4, (EndpointPort("http", "TCP", 8080),), found)


def wire() -> None:
    """Two namespaces and a cable."""
    for name in ("server", "client"):
        subprocess.run(["ip", "netns", "add", name], check=True)
    cable = ["ip", "link", "add", "eth0", "netns", "server", "type", "veth", "peer", "name", "eth0", "netns", "client"]
    subprocess.run(cable, check=True)
    for name, address in (("server", SERVER), ("client", CLIENT)):
        subprocess.run(["ip", "-n", name, "address", "add", f"{address}/24", "dev", "eth0"], check=True)
        subprocess.run(["ip", "-n", name, "link", "set", "eth0", "up"], check=True)


def cpu_seconds(pid: int) -> float:
    """Processor time of a process so far; the scheduler's own account, in ns."""
    with open(f"/proc/{pid}/schedstat", encoding="ascii") as file:
        return int(file.read().split()[0]) / 1e9


def rate(
    pid: int, questions: Iterator[bytes], seconds: float, before: Callable[[], None] | None = None
) -> dict[str, Any]:
    """Answers a second; ``before`` each window of questions."""
    with inside("/run/netns/client"):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect((SERVER, 53))
    sock.settimeout(2.0)
    started, used, answered = time.monotonic(), cpu_seconds(pid), 0
    while (now := time.monotonic()) < started + seconds:
        if before is not None:
            before()
        for question in itertools.islice(questions, WINDOW):
            sock.send(question)
        for _ in range(WINDOW):
            sock.recv(4096)
        answered += WINDOW
    taken = now - started
    cpu = cpu_seconds(pid) - used
    return {"per second": round(answered / taken), "CPU us per answer": round(cpu / answered * 1e6, 1)}


def measure(count: int, seconds: float) -> list[dict[str, Any]]:
    """All of it, inside the sandbox."""
    wire()
    services, slices = cluster(count)
    results: list[dict[str, Any]] = []
    with DnsServers("cluster.local") as dns:
        dns.update(namespaces=["default"])
        place = Place("server", "/run/netns/server", "cluster", (SERVER,), ())
        assert not dns.serve([place], {})
        began = time.monotonic()
        dns.update(services, slices)
        results.append({"what": f"the state of {count} Services", "ms": round((time.monotonic() - began) * 1e3, 1)})

        def name(number: int, kind: str = "A") -> bytes:
            return question_for(f"s{number % count}.default.svc.cluster.local", kind, number & 0xFFFF)

        few = [name(number) for number in range(100)]
        results.append({"what": "kept answers", **rate(dns.pid, itertools.cycle(few), seconds)})
        new = (question_for(f"x{n}.default.svc.cluster.local", "A", n & 0xFFFF) for n in itertools.count())
        many = [next(new) for _ in range(3 * KEPT)]  # none is kept until it comes again
        results.append({"what": "new names, NXDOMAIN", **rate(dns.pid, itertools.cycle(many), seconds)})
        srv = [name(number, "SRV") for number in range(count)]
        changes = itertools.count()

        def change() -> None:
            number = next(changes) % count
            dns.update(slices=[endpoints(number, (2 * number,))])

        results.append({"what": "SRV, a change every 64", **rate(dns.pid, itertools.cycle(srv), seconds, change)})
        times = []
        for number in range(200):
            began = time.monotonic()
            dns.update(slices=[endpoints(number % count, (2 * number, 2 * number + 1))])
            times.append((time.monotonic() - began) * 1e3)
        results.append(
            {"what": "one endpoint changed", "ms": round(statistics.median(times), 3), "most": round(max(times), 3)}
        )
    return results


def dns(quick: bool) -> list[Figure]:
    """Questions a second of one server that knows 10,000 Services, and what a change costs it."""
    runs = [
        {
            result["what"]: result
            for result in call_forked(lambda: measure(10_000, 1.0 if quick else 3.0), timeout=300.0)
        }
        for _ in range(1 if quick else 3)
    ]
    figures = [
        Figure(
            f"DNS: {what}",
            "queries/s",
            tuple(run[what]["per second"] for run in runs),
            RATE,
            "more",
            note=f"{statistics.median(run[what]['CPU us per answer'] for run in runs):.0f} µs of CPU for an answer",
        )
        for what, result in runs[0].items()
        if "per second" in result
    ]
    figures += [
        Figure(f"DNS: {what}", "ms", tuple(run[what]["ms"] for run in runs))
        for what in runs[0]
        if "ms" in runs[0][what]
    ]
    return figures


def main() -> None:
    """Print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--services", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each rate")
    options = parser.parse_args()
    for result in call_forked(lambda: measure(options.services, options.seconds), timeout=300.0):
        print(json.dumps(result))


if __name__ == "__main__":
    main()
