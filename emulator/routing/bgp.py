"""Which routes BGP brings, worked out from sessions and origins: what BIRD puts into the kernel once it has settled.

A plan lists the routes that daemons must bring, so that a lab can wait for them and a reader can see them. In a full
mesh they are plain: every node has every other's blocks by that node's own address. With route reflectors and routers
in other autonomous systems it takes the rules themselves::

    a path is told to ── external peers: always, with the own AS number in front
                      ── internal peers: if it is the speaker's own or an external peer's,
                                         or if the one it came from or the one it goes to is a reflector's client
    and refused by ───── who finds its own AS number, router id or cluster id in it

Sources: RFC 4271 (9.1.2 decision process, 9.2 update-send process), RFC 4456 (route reflection), BIRD 2.0
``proto/bgp/attrs.c`` (bgp_rte_better, bgp_use_next_hop).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

ROUNDS = 64  # no network here is as deep


@dataclass(frozen=True)
class Session:
    """One end of a BGP session, as it is configured at ``local``.

    ``client``: the peer is a client of this reflector, whose cluster is ``cluster``. ``direct``: both ends are on one
    link and the session knows it. ``next_hop_self``: of external paths told to internal peers.
    """

    local: str
    remote: str
    local_address: str
    remote_address: str
    local_asn: int
    remote_asn: int
    protocol: str
    cluster: str = ""
    client: bool = False
    direct: bool = False
    next_hop_self: bool = False
    keep_next_hop: bool = False
    own_as_allowed: int = 0
    passive: bool = False
    port: int = 0
    password: str = ""
    restart_time: int = 0
    prepend: tuple[int, ...] = ()  # put in front of the AS path for external peers, behind the own number

    @property
    def internal(self) -> bool:
        return self.local_asn == self.remote_asn


@dataclass(frozen=True)
class Path:
    """A route to a prefix at one speaker. ``source`` is the session that it came by; None: the speaker's own."""

    next_hop: str
    as_path: tuple[int, ...] = ()
    originator: str = ""  # router id of who brought it into the AS
    clusters: tuple[str, ...] = ()
    source: Session | None = None

    @property
    def internal(self) -> bool:
        return self.source is not None and self.source.internal


Exports = Callable[[str, str], bool]  # speaker, prefix: whether the speaker's filter lets it out


def settle(
    router_ids: Mapping[str, str], sessions: Sequence[Session], origins: Mapping[str, str], exports: Exports
) -> dict[str, dict[str, Path]]:
    """The best path to each prefix at each speaker, by speaker and prefix. ``origins`` are the speakers that prefixes
    belong to. A session counts if its other end is configured to match, and has another router id in the same AS."""
    pairs = _established(sessions, router_ids)
    tables: dict[str, dict[str, Path]] = {speaker: {} for speaker in router_ids}
    for prefix, origin in origins.items():
        for speaker, path in _settled(router_ids, pairs, prefix, origin, exports)[0].items():
            tables[speaker][prefix] = path
    return tables


def _settled(
    router_ids: Mapping[str, str],
    pairs: Sequence[tuple[Session, Session]],
    prefix: str,
    origin: str,
    exports: Exports,
) -> tuple[dict[str, Path], Mapping[str, Mapping[Session, Path]]]:
    """For one prefix, by speaker: the best path, and every path that was heard."""
    heard: defaultdict[str, dict[Session, Path]] = defaultdict(dict)
    best: dict[str, Path] = {origin: Path("", originator=router_ids[origin])}
    changed = {origin}
    for _ in range(ROUNDS):
        receivers: set[str] = set()
        for here, there in pairs:
            if here.local not in changed:
                continue
            told = _told(best.get(here.local), here, router_ids[here.local]) if exports(here.local, prefix) else None
            taken = _taken(told, there, router_ids[there.local])
            if heard[there.local].get(there) != taken:
                receivers.add(there.local)
                if taken is None:
                    heard[there.local].pop(there, None)
                else:
                    heard[there.local][there] = taken
        changed = set()
        for speaker in receivers - {origin}:
            chosen = min(heard[speaker].values(), key=_rank, default=None)
            if chosen != best.get(speaker):
                changed.add(speaker)
                if chosen is None:
                    best.pop(speaker, None)
                else:
                    best[speaker] = chosen
        if not changed:
            break
    return best, heard


def spread(
    router_ids: Mapping[str, str],
    sessions: Sequence[Session],
    prefix: str,
    origins: Iterable[str],
    exports: Exports,
) -> dict[str, tuple[Path, ...]]:
    """The equally good paths to a prefix that one or several speakers have of their own, by speaker, each next hop
    once: what ``merge paths`` puts into the kernel. Speakers that have it themselves are left out."""
    having = tuple(origins)
    pairs = _established(sessions, router_ids)
    heard: defaultdict[str, list[Path]] = defaultdict(list)
    for origin in having:
        for speaker, paths in _settled(router_ids, pairs, prefix, origin, exports)[1].items():
            if speaker not in having:
                heard[speaker] += paths.values()
    found: dict[str, tuple[Path, ...]] = {}
    for speaker, known in heard.items():
        least = min((len(path.as_path) for path in known), default=0)
        best = [path for path in known if len(path.as_path) == least]
        best = [path for path in best if not path.internal] or best
        if best:
            found[speaker] = tuple({path.next_hop: path for path in sorted(best, key=_rank)}.values())
    return found


def _established(sessions: Iterable[Session], router_ids: Mapping[str, str]) -> list[tuple[Session, Session]]:
    """Both ends of each session that comes up, each way round. Within an AS no two speakers may have the same
    identifier: the OPEN is answered by NOTIFICATION 2/3, Bad BGP Identifier (RFC 6286, 2.2)."""
    ends = {(each.local_address, each.remote_address): each for each in sessions}
    return [
        (each, other)
        for each in sessions
        if (other := ends.get((each.remote_address, each.local_address))) is not None
        and (each.local_asn, each.remote_asn, each.password) == (other.remote_asn, other.local_asn, other.password)
        and not (each.passive and other.passive)
        and not (each.internal and router_ids[each.local] == router_ids[other.local])
    ]


def _told(path: Path | None, session: Session, router_id: str) -> Path | None:
    """What goes out by a session."""
    if path is None or (path.source is not None and path.source.remote_address == session.remote_address):
        return None
    if not session.internal:
        # A third party's next hop stays where everybody is on one link; else the speaker puts itself there.
        keep = path.next_hop and (session.keep_next_hop or _one_link(path.source, session))
        as_path = (session.local_asn, *session.prepend, *path.as_path)
        return Path(path.next_hop if keep else session.local_address, as_path)
    if path.internal:
        assert path.source is not None
        if not (session.client or path.source.client):
            return None
        cluster = session.cluster or path.source.cluster or router_id
        return Path(path.next_hop, path.as_path, path.originator, (cluster, *path.clusters))
    own = not path.next_hop or (session.next_hop_self and path.source is not None)
    return Path(session.local_address if own else path.next_hop, path.as_path, router_id)


def _one_link(source: Session | None, session: Session) -> bool:
    if source is None or not (source.direct and session.direct):
        return False
    return source.local_address == session.local_address


def _taken(path: Path | None, session: Session, router_id: str) -> Path | None:
    """What comes in by a session, unless it has been here before."""
    if path is None:
        return None
    if path.as_path.count(session.local_asn) > session.own_as_allowed:
        return None
    if path.originator == router_id or (session.cluster and session.cluster in path.clusters):
        return None
    return Path(path.next_hop, path.as_path, path.originator, path.clusters, session)


def _rank(path: Path) -> tuple[int, bool, int, int, int]:
    """Lowest is best: RFC 4271, 9.1.2.2, as far as anything differs here; RFC 4456, section 9."""
    assert path.source is not None
    sender = path.originator or path.source.remote_address
    return (
        len(path.as_path),
        path.internal,
        int(ip_address(sender)),
        len(path.clusters),
        int(ip_address(path.source.remote_address)),
    )
