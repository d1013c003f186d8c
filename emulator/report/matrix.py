"""A matrix for people: the table of sources and targets, and the words for a cell.

::

    80/tcp          client  web  db
    client             .     .    X
    web                .     .    .
    db                 R!    .    .

``.`` passed, ``X`` was met with silence, ``R`` was refused, ``-``: the network has no way there. Behind it ``!`` where
nothing explains that packets did otherwise than the API says, and ``*`` where the style is known to deviate.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from emulator.lab.expected import in_words
from emulator.lab.verdicts import Cell, Matrix, PortWish
from emulator.report.visible import visible

SIGNS = {"allowed": ".", "dropped": "X", "refused": "R", "unreachable": "-"}
LEGEND = {
    ".": "allowed",
    "X": "dropped",
    "R": "refused",
    "-": "no way there",
    "!": "not as specified",
    "*": "known deviation",
}
WIDEST = 120  # characters; columns of wider tables bear numbers, which stand before the rows' names
DEFAULT_PREFIX = "default/"


def table_text(matrix: Matrix) -> str:
    """All tables, those of ports and families whose cells are the same in one, and what the signs mean."""
    tables = []
    names = short_names(dict.fromkeys((*matrix.sources, *matrix.targets)))
    for title, cells in tables_of(matrix):
        rows = [label for label in matrix.sources if any(cell.source == label for cell in cells)]
        columns = [label for label in matrix.targets if any(cell.target == label for cell in cells)]
        tables.append("\n".join(_lines(title, cells, rows, columns, names)))
    used = {sign for cell in matrix.cells for sign in sign_of(cell)}
    legend = "   ".join(f"{sign} {word}" for sign, word in LEGEND.items() if sign in used)
    return "\n\n".join([*tables, legend])


def tables_of(matrix: Matrix) -> list[tuple[str, list[Cell]]]:
    """What to print: for each table its title and its cells."""
    families = sorted({cell.family for cell in matrix.cells})
    found: dict[tuple[tuple[str, str, str], ...], list[tuple[PortWish, int, list[Cell]]]] = {}
    for port in matrix.ports:
        for family in families:
            cells = [c for c in matrix.cells if (c.protocol, c.port, c.family) == (port.protocol, port.port, family)]
            if cells:
                shape = tuple((cell.source, cell.target, sign_of(cell)) for cell in cells)
                found.setdefault(shape, []).append((port, family, cells))
    tables = []
    for same in found.values():
        ports = dict.fromkeys(str(port) for port, _, _ in same)
        title = ", ".join(ports)
        if len(families) > 1:
            there = dict.fromkeys(f"IPv{family}" for _, family, _ in same)
            title += f" ({' and '.join(there)})"
        tables.append((title, same[0][2]))
    return tables


def sign_of(cell: Cell) -> str:
    """``.``, ``X!`` and so on."""
    return SIGNS[cell.verdict] + ("!" if cell.wrong else "*" if not cell.as_specified and cell.deviation else "")


def short_names(labels: Iterable[str]) -> dict[str, str]:
    """Names as people type them: pods of one namespace without it, of several all with it."""
    labels = list(labels)
    namespaces = {label.split("/")[1] for label in labels if label.startswith(("pod/", "service/"))}
    return {label: _short(label, one=len(namespaces) == 1) for label in labels}


def _short(label: str, *, one: bool) -> str:
    kind, _, rest = label.partition("/")
    if kind == "pod":
        return rest.partition("/")[2] if one else rest
    if kind == "service":
        return f"svc/{rest.partition('/')[2] if one else rest}"
    return label


def _lines(
    title: str, cells: Sequence[Cell], rows: Sequence[str], columns: Sequence[str], names: dict[str, str]
) -> Iterator[str]:
    signs = {(cell.source, cell.target): sign_of(cell) for cell in cells}
    heads = [visible(names[label]) for label in columns]
    left = [visible(names[label]) for label in rows]
    if sum(len(head) + 2 for head in heads) + max(map(len, [title, *left])) > WIDEST:
        numbers = {label: number for number, label in enumerate(dict.fromkeys((*columns, *rows)), start=1)}
        heads = [str(numbers[label]) for label in columns]
        left = [f"{numbers[label]:>3} {name}" for label, name in zip(rows, left, strict=True)]
        missing = [f"{numbers[label]:>3} {visible(names[label])}" for label in columns if label not in rows]
    else:
        missing = []
    first = max(map(len, [title, *left, *missing]))
    widths = [max(len(head), 2) for head in heads]
    yield "  ".join([title.ljust(first), *(head.rjust(width) for head, width in zip(heads, widths, strict=True))])
    for label, name in zip(rows, left, strict=True):
        found = (_centred(signs.get((label, column), ""), width) for column, width in zip(columns, widths, strict=True))
        yield "  ".join([name.ljust(first), *found]).rstrip()
    yield from missing


def _centred(sign: str, width: int) -> str:
    """The first character of a sign in the middle of its column, so that marks behind it do not move it."""
    left = (width - 1) // 2
    return (" " * left + sign).ljust(width)


def request(cell: Cell, names: dict[str, str] | None = None) -> str:
    """``client → web:80/tcp``."""
    names = names or short_names((cell.source, cell.target))
    port = f":{cell.port}/{cell.protocol}" if cell.port else f" {cell.protocol}"
    family = " (IPv6)" if cell.family == 6 else ""
    return f"{visible(names[cell.source])} → {visible(names[cell.target])}{port}{family}"


def observed(cell: Cell) -> str:
    """``dropped``, ``refused (port unreachable, from 10.0.0.1)``, ``allowed after 180 ms, nothing within 100 ms``."""
    if cell.verdict in ("refused", "unreachable") and cell.detail:
        return f"{cell.verdict} ({cell.detail})"
    if cell.first:
        return f"{cell.verdict}, asked a second time; first {cell.first}"
    return cell.verdict


def reasons(cell: Cell) -> list[str]:
    """Why the API says what it says of a request, a line for each end."""
    if cell.why:
        return [cell.why]
    ends = [judgement for judgement in (cell.egress, cell.ingress) if judgement is not None]
    if cell.specification == "deny":
        ends = [judgement for judgement in ends if not judgement.allowed]
    return [in_words(judgement) for judgement in ends]


def difference(cell: Cell) -> str:
    """One line: what was observed, what the API says, and why."""
    text = f"{observed(cell)}, specified {cell.specification} ({'; '.join(reasons(cell))})"
    return f"{text}; known: {cell.deviation.what}" if cell.deviation is not None and not cell.wrong else text
