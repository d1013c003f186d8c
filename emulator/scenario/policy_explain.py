"""Why a request passes or does not: the specification's reasons, and the rule that stopped its packet."""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from emulator.capture.denial import Aim, Denial, Openings, denial, silenced
from emulator.capture.model import Journey, Packet
from emulator.capture.planned import Index
from emulator.capture.queue_agent import MODULE
from emulator.cluster.model import Cluster
from emulator.lab.lab import Lab
from emulator.lab.names import resolve
from emulator.lab.verdicts import Ask, Cell, MatrixWish
from emulator.plan.model import Daemon, Plan
from emulator.policy.kindnet_judge import PROTOCOLS
from emulator.policy.kindnet_judge import Packet as JudgedPacket

_HANDLE = re.compile(r"^\t\t.*# handle (\d+)$", re.MULTILINE)
_PROTOCOLS = {"icmp": ("icmp", "icmpv6")}


class Explanation(msgspec.Struct, frozen=True, omit_defaults=True):
    """One request: its verdict with the reasons of policies, where its packet went, and who stopped it. ``journey`` is
    None where the packet was never seen. ``policies`` are those that decided: of an allowed request those that allow
    it, of a denied one those that isolate its end, or deny it. ``records`` are what an agent that judges in user space
    wrote of the packet at the time, each after its place."""

    style: str
    enforcer: str
    cell: Cell
    policies: tuple[str, ...] = ()
    stopped: Denial | None = None
    journey: Journey | None = None
    records: tuple[tuple[str, str], ...] = ()
    warnings: tuple[str, ...] = ()


def explain_request(lab: Lab, ask: Ask, style: str) -> Explanation:
    """Send the request and follow its packet. Raises NotFound and UserError for ends that cannot be asked."""
    cluster, plan = lab.cluster(), lab.plan()
    with lab.capture() as capture:
        matrix = lab.matrix(MatrixWish(asks=(ask,)))
    cell = matrix.cells[0]
    source = resolve(cluster, cell.source)
    journeys = capture.journeys()
    asked = [each for each in journeys if _is_request(each, cell, source.ns)]
    stopped = None
    if not cell.allowed:
        stopped = _stopped(asked, journeys, cell, cluster, plan, source.ns)
    if stopped is not None and stopped.program == "nft":
        stopped = _with_handle(lab, stopped)
    return Explanation(
        style=style,
        enforcer=matrix.enforcer,
        cell=cell,
        policies=deciding(cell),
        stopped=stopped,
        journey=asked[-1] if asked else None,
        records=_records(lab, plan, asked[-1]) if asked and not cell.allowed else (),
        warnings=(*lab.warnings, *capture.stats.warnings),
    )


def _with_handle(lab: Lab, stopped: Denial) -> Denial:
    """The denial with the number by which nftables itself knows the rule (``nft -a list chain``)."""
    where = stopped.table.split()
    printed = lab.run(stopped.ns.partition("/")[2], "nft", "-a", "list", "chain", *where, stopped.chain).stdout
    handles = [int(found) for found in _HANDLE.findall(printed)]
    if len(handles) < stopped.rule:
        return stopped
    return msgspec.structs.replace(stopped, handle=handles[stopped.rule - 1])


def deciding(cell: Cell) -> tuple[str, ...]:
    """The policies that the verdict is due to."""
    ends = [one for one in (cell.egress, cell.ingress) if one is not None]
    if cell.specification == "deny":
        ends = [one for one in ends if not one.allowed]
    return tuple(dict.fromkeys(key for one in ends for key in ((one.policy,) if one.policy else one.isolated_by)))


def _is_request(journey: Journey, cell: Cell, source_ns: str) -> bool:
    first = journey.hops[0]
    packet = first.packet
    if (first.ns, first.direction) != (source_ns, "out") or packet.fragment_offset:
        return False
    if packet.protocol not in _PROTOCOLS.get(cell.protocol, (cell.protocol,)) or packet.target != cell.address:
        return False
    if cell.protocol == "icmp":
        return packet.icmp_type in (8, 128)
    return packet.target_port == cell.port and (cell.protocol != "tcp" or packet.tcp_flags == "SYN")


def _stopped(
    asked: Sequence[Journey], journeys: Sequence[Journey], cell: Cell, cluster: Cluster, plan: Plan, ns: str
) -> Denial | None:
    index = Index(plan)
    aims = _aims(cluster, cell)
    if asked:
        return denial(asked[-1].hops, index, new=Openings().opens(asked[-1].hops[-1].packet), aims=aims)
    if ns.startswith("pod/"):
        return None
    return silenced(_packet(cell, cluster, ns), ns, index, aims=aims)


def _records(lab: Lab, plan: Plan, journey: Journey) -> tuple[tuple[str, str], ...]:
    """What agents wrote of the packet: known by its ends, as it was when it was seen last. A Service's address may have
    become an endpoint's after that, so the sender and its port are enough."""
    agents = {(item.ns, item.name) for item in plan if isinstance(item, Daemon) and item.module == MODULE}
    if not agents:
        return ()
    packet = journey.hops[-1].packet
    name = packet.protocol.upper() if packet.protocol.upper() in PROTOCOLS.values() else ""
    ports = (packet.source_port, packet.target_port) if name else (0, 0)
    sent = JudgedPacket(packet.source, packet.target, name, *ports)
    start = f"drop {str(sent).partition(' > ')[0]} > "
    found = [
        (ns, line)
        for ns, agent in sorted(agents)
        for text in lab.logs(ns, agent).values()
        for line in text.splitlines()
        if line.startswith(start)
    ]
    return tuple(dict.fromkeys(found))


def _aims(cluster: Cluster, cell: Cell) -> list[Aim]:
    """Where a request to a Service may be led."""
    from emulator.lab.expected import service_endpoints

    place = resolve(cluster, cell.target)
    if place.service is None:
        return []
    return list(service_endpoints(cluster, place.service, cell.protocol, cell.port, cell.family))


def _packet(cell: Cell, cluster: Cluster, ns: str) -> Packet:
    """The request of a machine as its own rules saw it, before anything could be captured."""
    addresses = resolve(cluster, cell.source).addresses
    source = next((each for each in addresses if (":" in each) == (cell.family == 6)), "")
    protocol = "icmpv6" if cell.protocol == "icmp" and cell.family == 6 else cell.protocol
    return Packet("", "", 0, protocol, version=cell.family, source=source, target=cell.address, target_port=cell.port)
