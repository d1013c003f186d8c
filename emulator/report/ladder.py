"""A packet's way as a ladder: a lane per namespace, a rung per hop, connectors and marks drawn as SVG.

::

    pod a   n1   wire   n2   pod b
      ○                              1  eth0        10.244.1.2 → 10.244.2.2  ttl 64  ICMP
      └────▶○                        2  veth3f2a    unchanged
            ◆                        3  flannel.1   ttl 63
            └────▶◆                  4  eth0        192.168.50.11 → .12  VXLAN  [ ... ]

Lanes are narrow and hold nothing but the drawing; what there is to read stands beside them, in the page's own text.
So no connector runs through a word, no header is cut, and text wraps, is found, copied and read aloud as text.

Each rung is a small SVG of fixed height whose connector begins at the top edge; the line below its mark, as long as
the text beside it is tall, is a border drawn by the style sheet. The shapes are symbols defined once a page.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

from emulator.capture.model import Hop, Journey, Reason
from emulator.plan.model import UNDERLAY
from emulator.report.headers import Block, blocks

RUNG = 22  # px: height of the drawing of one rung
MARK = 13  # px: where in it the mark sits, the middle of the first line of text
FOLD_ABOVE = 13  # hops: longer ways have runs of unchanged hops in one namespace folded
GUTTER = 180  # px: what all lanes together take at most, while each has LANE_MIN
LANE, LANE_MIN = 36, 22  # px
UPRIGHT = 6  # characters of a name that fit across a lane

Mark = Literal["changed", "same", "fold", "lost", "end"]


class Lane(NamedTuple):
    """One namespace. ``kind`` is ``pod``, ``node``, ``router``, ``host`` or ``underlay``; ``title`` its whole name."""

    ns: str
    kind: str
    name: str
    title: str


class Rung(NamedTuple):
    """One hop. ``since`` is µs since the hop before; ``quiet``: nothing in the packet changed here."""

    number: int
    lane: int
    came_from: int
    ns: str
    device: str
    direction: str
    blocks: tuple[Block, ...]
    reasons: tuple[Reason, ...]
    since: float
    length: int
    in_tunnel: bool
    came_in_tunnel: bool
    quiet: bool
    mark: Mark

    @property
    def lane_changed(self) -> bool:
        """Whether the packet has just come into this namespace."""
        return self.lane != self.came_from


class Fold(NamedTuple):
    """Consecutive quiet rungs in one lane, folded into one line."""

    rungs: tuple[Rung, ...]

    @property
    def first(self) -> Rung:
        """The first rung, whose connector leads to the folded line."""
        return self.rungs[0]

    @property
    def since(self) -> float:
        """µs over all of them."""
        return sum(rung.since for rung in self.rungs)


class Ladder(NamedTuple):
    """One packet's way, ready to draw."""

    lanes: tuple[Lane, ...]
    items: tuple[Rung | Fold, ...]
    lane_width: int

    @property
    def tall(self) -> bool:
        """Whether the lanes' names only fit upright."""
        return self.lane_width < LANE or any(len(lane.name) > UPRIGHT for lane in self.lanes)

    @property
    def rungs(self) -> tuple[Rung, ...]:
        """All hops, folded or not."""
        return tuple(rung for item in self.items for rung in (item.rungs if isinstance(item, Fold) else (item,)))


def lanes_of(journeys: Iterable[Journey], titles: dict[str, str]) -> tuple[Lane, ...]:
    """The lanes for these packets, in the order in which they are first entered. ``titles`` may rename namespaces."""
    order = dict.fromkeys(hop.ns for journey in journeys for hop in journey.hops)
    return tuple(_lane(ns, titles) for ns in order)


def ladder(journey: Journey, lanes: tuple[Lane, ...], *, arrived: bool = True) -> Ladder:
    """The ladder of one packet. ``lanes`` may hold more than it touches, so that two ladders line up."""
    index = {lane.ns: number for number, lane in enumerate(lanes)}
    rungs: list[Rung] = []
    before: Hop | None = None
    last = len(journey.hops) - 1
    for number, hop in enumerate(journey.hops):
        found = blocks(hop.packet, before.packet if before else None)
        quiet = before is not None and not any(block.change for block in found)
        mark: Mark = "same" if quiet else "changed" if before else "same"
        if number == last:
            mark = "end" if arrived else "lost"
        rungs.append(
            Rung(
                number=number + 1,
                lane=index[hop.ns],
                came_from=index[before.ns] if before else -1,
                ns=hop.ns,
                device=hop.device,
                direction=hop.direction,
                # The first hop shows what was sent and the last what was received, changed or not.
                blocks=() if quiet and number != last else found,
                reasons=hop.reasons,
                since=(hop.time - before.time) / 1000 if before else 0.0,
                length=hop.packet.length,
                in_tunnel=hop.packet.tunnel is not None,
                came_in_tunnel=before is not None and before.packet.tunnel is not None,
                quiet=quiet,
                mark=mark,
            )
        )
        before = hop
    width = max(LANE_MIN, min(LANE, GUTTER // len(lanes)))
    return Ladder(lanes, _folded(rungs) if len(rungs) > FOLD_ABOVE else tuple(rungs), width)


def symbol(item: Rung | Fold, width: int) -> str:
    """The id of the drawing for one line of a ladder."""
    rung = item.first if isinstance(item, Fold) else item
    mark = "fold" if isinstance(item, Fold) else rung.mark
    return f"{mark[0]}{'t' if rung.came_in_tunnel else ''}{rung.came_from + 1}-{rung.lane}-{width}"


def symbols(ladders: Iterable[Ladder]) -> str:
    """All drawings that these ladders use, as SVG ``<symbol>`` elements."""
    found: dict[str, str] = {}
    for one in ladders:
        for item in one.items:
            rung = item.first if isinstance(item, Fold) else item
            name = symbol(item, one.lane_width)
            if name not in found:
                mark: Mark = "fold" if isinstance(item, Fold) else rung.mark
                shapes = _connector(rung, one.lane_width) + _mark(rung.lane, one.lane_width, mark)
                found[name] = f'<symbol id="{name}" overflow="visible">{shapes}</symbol>'
    return "".join(found.values())


def _lane(ns: str, titles: dict[str, str]) -> Lane:
    kind, _, rest = ns.partition("/")
    if ns == UNDERLAY:
        return Lane(ns, kind, "wire", titles.get(ns) or "the wire (underlay)")
    return Lane(ns, kind, rest.rpartition("/")[2], titles.get(ns) or f"{kind} {rest}")


def _folded(rungs: list[Rung]) -> tuple[Rung | Fold, ...]:
    items: list[Rung | Fold] = []
    run: list[Rung] = []
    for rung in [*rungs, None]:
        if rung and rung.quiet and not rung.blocks and (not run or not rung.lane_changed):
            run.append(rung)
            continue
        items += [Fold(tuple(run))] if len(run) > 1 else run
        run = []
        if rung and rung.quiet and not rung.blocks:
            run = [rung]
        elif rung:
            items.append(rung)
    return tuple(items)


def _x(lane: int, width: int) -> float:
    return (lane + 0.5) * width


def _connector(rung: Rung, width: int) -> str:
    """From the top edge to the mark: straight down, or down and over with an arrow head into the other lane.

    In a tunnel it is a tube: a thick line with a thin one in the page's colour over it.
    """
    if rung.came_from < 0:
        return ""
    start, end = _x(rung.came_from, width), _x(rung.lane, width)
    head = ""
    if rung.came_from == rung.lane:
        line = f"M{start:g} 0V{MARK}"
    else:
        step = 1 if end > start else -1
        tip = end - step * 7
        line = f"M{start:g} 0V{MARK - 6}q0 6 {6 * step} 6H{tip - step * 4:g}"
        head = f'<path class="h{" u" if rung.came_in_tunnel else ""}" d="M{tip:g} {MARK}l{-7 * step} -5v10z"/>'
    if rung.came_in_tunnel:
        return f'<path class="k u" d="{line}"/><path class="k i" d="{line}"/>{head}'
    return f'<path class="k" d="{line}"/>{head}'


def _mark(lane: int, width: int, mark: Mark) -> str:
    """The shapes differ as well as the colours: a diamond where something changed, a ring where nothing did."""
    x, y = _x(lane, width), MARK
    if mark == "changed":
        return f'<path class="c" d="M{x:g} {y - 6}l6 6l-6 6l-6 -6z"/>'
    if mark == "lost":
        cross = f"M{x - 3.2:g} {y - 3.2:g}l6.4 6.4m0 -6.4l-6.4 6.4"
        return f'<circle class="o" cx="{x:g}" cy="{y}" r="6.5"/><path class="x" d="{cross}"/>'
    if mark == "end":
        return f'<circle class="e" cx="{x:g}" cy="{y}" r="6"/><path class="v" d="M{x - 3:g} {y}l2.2 2.4l3.8 -4.6"/>'
    if mark == "fold":
        return "".join(f'<circle class="f" cx="{x:g}" cy="{y + shift}" r="1.8"/>' for shift in (-5, 0, 5))
    return f'<circle class="d" cx="{x:g}" cy="{y}" r="4.5"/>'
