"""What links do to packets: rate, delay, jitter, loss; by whatever part of the kernel can, or not at all.

::

    wish                kernel has netem              kernel has not
    bandwidth           tbf                           tbf
    delay, jitter       netem (below tbf, if any)     impossible: the run stops, or goes on labelled (--allow-missing)
    loss                netem                         nftables, netdev family, egress hook: numgen random

After it is set, everything is read back and compared: Mininet's own TCLink starts an unimpaired link on a kernel
without netem and says nothing. Sources: tc-netem(8), tc-tbf(8), nft(8).
"""

from __future__ import annotations

import json
import subprocess
import zlib
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from emulator.errors import ApplyError, Unsupported
from emulator.kernel.syscalls import inside
from emulator.plan.describe import describe
from emulator.plan.model import AnyObject, Impairment

NETEM_OPTION = "CONFIG_NET_SCH_NETEM"
TBF_OPTION = "CONFIG_NET_SCH_TBF"
NFT_OPTION = "CONFIG_NFT_NUMGEN and CONFIG_NF_TABLES_NETDEV"
FEATURES = ("netem", "tbf", "nft-netdev", "nft-numgen")

QUEUE_TIME = 50  # ms that a packet may wait for its turn in tbf before the queue drops
BURST_TIME = 0.010  # s of line rate that may go out at once; also at least SMALLEST_BURST
SMALLEST_BURST = 15_000  # bytes: ten full frames, as tbf drops what is larger than its bucket
NETEM_LIMIT = 100_000  # packets: netem's default of 1,000 drops at 120 Mbit/s and 100 ms
LOSS_SCALE = 1_000_000  # numgen's range: loss in steps of 0.0001 per cent
TOOL_TIMEOUT = 30.0  # seconds
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"

Done = Callable[[AnyObject], None]


class Usable(Protocol):
    """What is asked of a probed feature (``emulator.kernel.capabilities.Feature``)."""

    @property
    def usable(self) -> bool: ...


@dataclass(frozen=True)
class Choice:
    """How one impairment is made: ``netem``, ``tbf``, ``nft`` (loss), joined by ``+``; empty for what is let go."""

    wish: Impairment
    queue: tuple[str, ...]  # qdiscs, from the root down
    nft_loss: bool

    @property
    def back_end(self) -> str:
        """For the run's records: ``tbf+netem``, ``nft``, ``none``."""
        return "+".join((*self.queue, *(("nft",) if self.nft_loss else ()))) or "none"


@dataclass(frozen=True)
class Missing:
    """A wish that cannot be granted, and the kernel option that would."""

    wish: Impairment
    what: str
    option: str

    def __str__(self) -> str:
        return f"{self.what} on {self.wish.ns} {self.wish.device} needs {self.option}"


def plan_impairments(
    wishes: Sequence[Impairment], features: Mapping[str, Usable]
) -> tuple[list[Choice], list[Missing]]:
    """Choose a back end for each wish from what the kernel has (names as in :data:`FEATURES`)."""
    netem, tbf = features["netem"].usable, features["tbf"].usable
    nft = features["nft-netdev"].usable and features["nft-numgen"].usable
    choices: list[Choice] = []
    missing: list[Missing] = []
    for wish in wishes:
        queue: list[str] = []
        if wish.bandwidth:
            if tbf:
                queue.append("tbf")
            else:
                missing.append(Missing(wish, f"bandwidth {wish.bandwidth:g} Mbit/s", TBF_OPTION))
        if netem and (wish.delay or wish.jitter or wish.loss):
            queue.append("netem")
        elif wish.delay or wish.jitter:
            jitter = f" ± {wish.jitter:g} ms" if wish.jitter else ""
            missing.append(Missing(wish, f"delay {wish.delay:g} ms{jitter}", NETEM_OPTION))
        if wish.loss and not netem and not nft:
            missing.append(Missing(wish, f"loss {wish.loss:g} %", f"{NETEM_OPTION}, or {NFT_OPTION}"))
        choices.append(Choice(wish, tuple(queue), bool(wish.loss) and not netem and nft))
    return choices, missing


def refuse(missing: Sequence[Missing]) -> Unsupported:
    """The error for wishes that cannot be granted."""
    first = str(missing[0])
    more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
    return Unsupported(
        f"this kernel cannot impair links as asked: {first}{more}",
        hint="run it where the kernel has that (`vagrant up`), or without it: --allow-missing",
        features=("netem",),
    )


def labels(missing: Sequence[Missing]) -> tuple[str, ...]:
    """What every output says when missing impairments were let go."""
    return tuple(f"not emulated: {item}" for item in missing)


class Impairments:
    """Sets impairments in the lab's namespaces. ``back_ends`` tells, per (namespace, device), what was chosen."""

    def __init__(
        self,
        netns: Callable[[str], str | int],
        *,
        allow_missing: bool = False,
        probe: Callable[[Collection[str]], Mapping[str, Usable]] | None = None,
    ) -> None:
        self._netns = netns
        self._allow_missing = allow_missing
        self._probe = probe
        self._features: Mapping[str, Usable] | None = None
        self._missing: dict[tuple[str, str], list[Missing]] = {}
        self.back_ends: dict[tuple[str, str], str] = {}

    @property
    def labels(self) -> tuple[str, ...]:
        """Wishes that were let go, for every output."""
        return labels([item for group in self._missing.values() for item in group])

    @property
    def choices(self) -> dict[str, str]:
        """The back ends in use, for the run's records: ``{"impairment node/n1 eth0": "tbf+netem"}``."""
        return {f"impairment {ns} {device}": back_end for (ns, device), back_end in self.back_ends.items()}

    def check(self, items: Sequence[AnyObject]) -> None:
        """Raise Unsupported, before anything is built, if a wish cannot be granted and must be."""
        wishes = [item for item in items if isinstance(item, Impairment)]
        if not wishes:
            return
        _, missing = plan_impairments(wishes, self._ask())
        if missing and not self._allow_missing:
            raise refuse(missing)

    def set(self, wishes: Sequence[Impairment], done: Done) -> None:
        """Make it so, and read it back. Raises ApplyError."""
        if not wishes:
            return
        choices, missing = plan_impairments(wishes, self._ask())
        grouped: defaultdict[str, list[Choice]] = defaultdict(list)
        for choice in choices:
            grouped[choice.wish.ns].append(choice)
            place = (choice.wish.ns, choice.wish.device)
            self.back_ends[place] = choice.back_end
            self._missing[place] = [item for item in missing if item.wish is choice.wish]
        for ns, members in grouped.items():
            with inside(self._netns(ns)):
                _run(("tc", "-batch", "-"), "".join(map(_queue_text, members)), members[0].wish)
                lossy = "".join(_loss_text(item.wish) for item in members if item.nft_loss)
                _run(("nft", "-f", "-"), lossy, members[0].wish)
                for choice in members:
                    _verify(choice)
                    done(choice.wish)

    def remove(self, items: Sequence[Impairment], done: Done) -> None:
        """Let packets through untouched again."""
        grouped: defaultdict[str, list[Impairment]] = defaultdict(list)
        for item in items:
            grouped[item.ns].append(item)
        for ns, members in grouped.items():
            with inside(self._netns(ns)):
                for item in members:
                    queue = self.back_ends.pop((ns, item.device), "none")
                    self._missing.pop((ns, item.device), None)
                    if "tbf" in queue or "netem" in queue:
                        _run(("tc", "-batch", "-"), f"qdisc del dev {_device(item)} root\n", item)
                    if "nft" in queue:
                        _run(("nft", "-f", "-"), _no_loss_text(item), item)
                    done(item)

    def differences(self, wishes: Sequence[Impairment]) -> list[str]:
        """Wishes that were granted once and are not any more, one line each."""
        found: list[str] = []
        if not wishes:
            return found
        for choice in plan_impairments(wishes, self._ask())[0]:
            with inside(self._netns(choice.wish.ns)):
                try:
                    _verify(choice)
                except ApplyError as error:
                    found.append(error.message)
        return found

    def _ask(self) -> Mapping[str, Usable]:
        if self._features is None:
            if self._probe is None:
                from emulator.kernel.capabilities import probe_for_use

                self._probe = probe_for_use
            self._features = self._probe(FEATURES)
        return self._features


def _device(wish: Impairment) -> str:
    """The device's name, which ends up in a line of tc's. Raises ApplyError for one that Linux would refuse."""
    if not wish.device or any(letter.isspace() or letter in '/"\\;{}' for letter in wish.device):
        raise ApplyError(f"failed to impair a link: {wish.device!r} is no device name")
    return wish.device


def _queue_text(choice: Choice) -> str:
    """tc's lines: from the root down, each queue below the one before."""
    wish = choice.wish
    device = _device(wish)
    lines = []
    parent = "root handle 1:"
    for kind in choice.queue:
        if kind == "tbf":
            burst = max(SMALLEST_BURST, int(wish.bandwidth * 1e6 / 8 * BURST_TIME))
            options = f"tbf rate {round(wish.bandwidth * 1e6)}bit burst {burst} latency {QUEUE_TIME}ms"
        else:
            options = f"netem limit {NETEM_LIMIT}"
            if wish.delay or wish.jitter:
                options += f" delay {round(wish.delay * 1000)}us {round(wish.jitter * 1000)}us"
            if wish.loss:
                options += f" loss random {wish.loss:.4f}%"
        lines.append(f"qdisc replace dev {device} {parent} {options}\n")
        parent = "parent 1:1 handle 10:"
    return "".join(lines)


def _loss_table(wish: Impairment) -> str:
    return f"cnilab_loss_{zlib.crc32(wish.device.encode()):08x}"


def _loss_text(wish: Impairment) -> str:
    share = round(wish.loss / 100 * LOSS_SCALE)
    return (
        f"table netdev {_loss_table(wish)} {{}}\ndelete table netdev {_loss_table(wish)}\n"
        f"table netdev {_loss_table(wish)} {{\n chain egress {{\n"
        f'  type filter hook egress device "{_device(wish)}" priority 0;\n'
        f"  numgen random mod {LOSS_SCALE} < {share} counter drop\n }}\n}}\n"
    )


def _no_loss_text(wish: Impairment) -> str:
    return f"table netdev {_loss_table(wish)} {{}}\ndelete table netdev {_loss_table(wish)}\n"


def _run(argv: tuple[str, ...], text: str, wish: Impairment) -> str:
    if not text and "-" in argv:
        return ""
    try:
        result = subprocess.run(
            argv,
            input=text,
            text=True,
            capture_output=True,
            check=False,
            timeout=TOOL_TIMEOUT,
            env={"PATH": PATH, "LC_ALL": "C"},
        )
    except FileNotFoundError as error:
        raise Unsupported(f"{argv[0]} is not installed", features=(argv[0],)) from error
    if result.returncode:
        words = describe(wish)
        said = " ".join(result.stderr.split())
        raise ApplyError(f"failed to set {words} in {wish.ns}: {argv[0]}: {said}", subject=words)
    return result.stdout


def _verify(choice: Choice) -> None:
    """Compare what the kernel says with what was asked. Raises ApplyError."""
    wish = choice.wish
    queues: dict[str, dict[str, Any]] = {
        item["kind"]: item.get("options", {})
        for item in json.loads(_run(("tc", "-j", "qdisc", "show", "dev", _device(wish)), "", wish) or "[]")
    }
    wrong = [f"{kind} is not there" for kind in choice.queue if kind not in queues]
    if "tbf" in choice.queue and "tbf" in queues:
        rate = float(queues["tbf"].get("rate", 0)) * 8 / 1e6  # tc says bytes per second
        wrong += _unless_close("rate", wish.bandwidth, rate, "Mbit/s")
    if "netem" in choice.queue and "netem" in queues:
        netem = queues["netem"]
        delay = netem.get("delay", {})
        wrong += _unless_close("delay", wish.delay, 1000 * float(delay.get("delay", 0)), "ms")
        wrong += _unless_close("jitter", wish.jitter, 1000 * float(delay.get("jitter", 0)), "ms")
        loss = netem.get("loss-random", {}).get("loss", 0)  # tc says a fraction
        wrong += _unless_close("loss", wish.loss, 100 * float(loss), "%")
    if choice.nft_loss:
        _run(("nft", "list", "chain", "netdev", _loss_table(wish), "egress"), "", wish)
    if wrong:
        words = describe(wish)
        raise ApplyError(f"failed to set {words} in {wish.ns}: {', '.join(wrong)}", subject=words)


def _unless_close(name: str, wanted: float, found: float, unit: str) -> list[str]:
    """tc rounds to its own ticks: a thousandth is no difference."""
    if abs(wanted - found) <= 0.001 * max(abs(wanted), 1.0):
        return []
    return [f"{name} is {found:g} {unit}, not {wanted:g}"]
