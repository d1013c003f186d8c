"""The health checker of a load balancer: asks each target at intervals whether it is well, and says what it found.

::

    targets.json ── every target ──┬── TCP: a connection that is established is good ──────────┐   so many in a row:
                                   └── HTTP: GET path, a status within the range is good ──────┴── the state changes
                                                                                                   and is reported

It stands in for what a cloud's balancers do unseen. A target begins as ``initial``: one good answer makes it healthy,
as with AWS; then ``unhealthy`` bad ones in a row are needed against it, and ``healthy`` good ones for it again. What
follows from a state is the business of others: each change is a line on standard output, ``report: `` and all states as
JSON, with the time of a monotonic clock (ns) to tell old from new.

Configuration is a JSON file: ``targets``, each with the fields of :class:`Target`. The control socket takes one word:
``reload`` has it read the file again; ``settle`` says that all targets are in place: it asks initial ones at once, and
tells all states as soon as each of them has given an answer or a moment has gone by. New ones wait for that word, or a
little while. Nothing but the standard library: it is started without site packages.

Source: docs.aws.amazon.com, "Health checks for Network Load Balancer target groups".
"""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import socket
import sys
import time
from dataclasses import dataclass, field

REPORT = "report: "  # before a line for the lab (emulator.kernel.daemons)
INITIAL, HEALTHY, UNHEALTHY = "initial", "healthy", "unhealthy"
FIRST = 2.0  # s until a new target is asked although nobody has said that it is in place
SETTLE = 1.0  # s that a caller who wants to know waits for first answers at most
CALLER_TIMEOUT = 2.0  # s for the word of a caller
LARGEST = 4096  # bytes of an answer that are read: the status line comes first
AGENT = "ELB-HealthChecker/2.0"


@dataclass(frozen=True)
class Target:
    """Whom to ask, and how. ``name`` is what reports call it; ``interval`` and ``timeout`` are seconds, ``healthy`` and
    ``unhealthy`` numbers of answers in a row, ``codes`` the first and last HTTP status that is good. ``source`` is the
    address to ask from, empty for any."""

    name: str
    protocol: str
    address: str
    port: int
    interval: float
    timeout: float
    healthy: int
    unhealthy: int
    path: str = "/"
    codes: tuple[int, int] = (200, 399)
    source: str = ""


def read_targets(text: str) -> dict[str, Target]:
    """Targets by name. Raises ValueError, KeyError, TypeError for a file that is none."""
    found = [Target(**{**each, "codes": tuple(each["codes"])}) for each in json.loads(text)["targets"]]
    return {each.name: each for each in found}


@dataclass
class Standing:
    """What is known of a target: its state, and how many answers in a row speak against it."""

    state: str = INITIAL
    against: int = 0
    why: str = "not asked yet"

    def hear(self, target: Target, good: bool, why: str) -> bool:
        """Take an answer in. Whether the state has changed."""
        self.why = why
        if self.state != INITIAL and good == (self.state == HEALTHY):
            self.against = 0
            return False
        self.against += 1
        needed = 1 if good and self.state == INITIAL else target.healthy if good else target.unhealthy
        if self.against < needed:
            return False
        self.state, self.against = HEALTHY if good else UNHEALTHY, 0
        return True

    @property
    def told(self) -> str:
        """The state for a report: ``healthy``, or what it is instead and why."""
        return self.state if self.state == HEALTHY else f"{self.state}: {self.why}"


class Check:
    """One question to a target, under way. Raises OSError if it cannot even be put."""

    def __init__(self, target: Target, now: float) -> None:
        self.target = target
        self.deadline = now + target.timeout
        self.socket = socket.socket(socket.AF_INET6 if ":" in target.address else socket.AF_INET, socket.SOCK_STREAM)
        self._connected = False
        self._heard = b""
        try:
            self.socket.setblocking(False)
            if target.source:
                self.socket.bind((target.source, 0))
            code = self.socket.connect_ex((target.address, target.port))
            if code not in (0, errno.EINPROGRESS):
                raise OSError(code, os.strerror(code))
        except BaseException:
            self.socket.close()
            raise

    @property
    def waits_for(self) -> int:
        """The poll events that the socket waits for."""
        return select.POLLIN if self._connected else select.POLLOUT

    def go_on(self) -> tuple[bool, str] | None:
        """The verdict with its reason, now that the socket is ready; None while there is none."""
        try:
            if not self._connected:
                if code := self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    return False, os.strerror(code).lower()
                self._connected = True
                if self.target.protocol == "tcp":
                    return True, "connected"
                self.socket.sendall(request(self.target))
                return None
            heard = self.socket.recv(LARGEST - len(self._heard))
        except BlockingIOError:
            return None
        except OSError as error:
            return False, (error.strerror or str(error)).lower()
        self._heard += heard
        if heard and b"\n" not in self._heard and len(self._heard) < LARGEST:
            return None
        return verdict(self._heard, self.target.codes)


def request(target: Target) -> bytes:
    """The HTTP request of a check."""
    host = f"[{target.address}]" if ":" in target.address else target.address
    head = f"GET {target.path} HTTP/1.1\r\nHost: {host}:{target.port}\r\nConnection: close\r\nUser-Agent: {AGENT}\r\n"
    return f"{head}\r\n".encode()


def verdict(answer: bytes, codes: tuple[int, int]) -> tuple[bool, str]:
    """Whether the beginning of an HTTP answer has a status within the range, and that in words."""
    words = answer.split(b"\n", 1)[0].split()
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
        return False, "no HTTP answer"
    status = int(words[1])
    return codes[0] <= status <= codes[1], f"HTTP {status}"


@dataclass
class _Caller:
    """Somebody who waits for first answers: whose, and how long at most."""

    socket: socket.socket
    missing: set[str]
    until: float


@dataclass
class Checker:
    """All targets of a balancer: what is known of each, when to ask it next, and the questions under way."""

    path: str
    control: socket.socket
    targets: dict[str, Target] = field(default_factory=dict)
    standings: dict[str, Standing] = field(default_factory=dict)
    due: dict[str, float] = field(default_factory=dict)
    running: dict[str, Check] = field(default_factory=dict)
    callers: list[_Caller] = field(default_factory=list)
    news: bool = False  # whether a state has changed since the last report

    def read(self) -> None:
        """Read the file again. A target that is asked in another way than before begins anew."""
        with open(self.path, encoding="utf-8") as file:
            wanted = read_targets(file.read())
        for name, target in list(self.targets.items()):
            if wanted.get(name) != target:
                self._drop(name)
                del self.targets[name], self.standings[name], self.due[name]
        for name, target in wanted.items():
            if name not in self.targets:
                self.targets[name] = target
                self.standings[name] = Standing()
                self.due[name] = time.monotonic() + FIRST

    def run(self) -> None:
        """For ever."""
        while True:
            now = time.monotonic()
            self._begin(now)
            self._give_up(now)
            if self.news:
                self.news = False
                print(REPORT + self.told(), flush=True)
            self._answer(now)
            poll = select.poll()
            poll.register(self.control, select.POLLIN)
            asked = {check.socket.fileno(): name for name, check in self.running.items()}
            for descriptor, name in asked.items():
                poll.register(descriptor, self.running[name].waits_for)
            ready = {descriptor for descriptor, _ in poll.poll(1000 * max(0.0, self._next() - time.monotonic()) + 1)}
            for name in [name for descriptor, name in asked.items() if descriptor in ready]:
                if (found := self.running[name].go_on()) is not None:
                    self._end(name, *found)
            if self.control.fileno() in ready:
                self._called()

    def told(self) -> str:
        """All states as a report has them."""
        states = {name: standing.told for name, standing in self.standings.items()}
        return json.dumps({"at": time.monotonic_ns(), "targets": states})

    def _begin(self, now: float) -> None:
        """Ask those whose turn it is."""
        for name, when in self.due.items():
            if when <= now and name not in self.running:
                target = self.targets[name]
                self.due[name] = now + target.interval
                try:
                    self.running[name] = Check(target, now)
                except OSError as error:
                    self._end(name, False, (error.strerror or str(error)).lower())

    def _give_up(self, now: float) -> None:
        for name in [name for name, check in self.running.items() if check.deadline <= now]:
            self._end(name, False, f"no answer within {self.targets[name].timeout:g} s")

    def _end(self, name: str, good: bool, why: str) -> None:
        """An answer has come, or none will."""
        self._drop(name)
        for caller in self.callers:
            caller.missing.discard(name)
        standing = self.standings[name]
        if standing.hear(self.targets[name], good, why):
            self.news = True
            _say(f"{name} is {standing.state}: {why}")

    def _drop(self, name: str) -> None:
        if (check := self.running.pop(name, None)) is not None:
            check.socket.close()

    def _next(self) -> float:
        """When something is to be done without anybody's asking."""
        times = [when for name, when in self.due.items() if name not in self.running]
        times += [check.deadline for check in self.running.values()]
        times += [caller.until for caller in self.callers]
        return min(times, default=time.monotonic() + 60.0)

    def _called(self) -> None:
        caller, _ = self.control.accept()
        caller.settimeout(CALLER_TIMEOUT)
        try:
            word = caller.recv(64)
            if word == b"reload":
                self.read()
            if word == b"settle":
                self._settle(caller)
                return
        except (OSError, ValueError, KeyError, TypeError) as error:
            _say(f"a caller was not served: {error}")
        caller.close()

    def _settle(self, caller: socket.socket) -> None:
        """Everything is in place now: those that have not answered yet are asked."""
        now = time.monotonic()
        missing = {name for name, standing in self.standings.items() if standing.state == INITIAL}
        for name in missing:
            if name not in self.running:
                self.due[name] = now
        self.callers.append(_Caller(caller, missing, now + SETTLE))

    def _answer(self, now: float) -> None:
        """Tell those who wait for nobody any more."""
        for caller in [each for each in self.callers if not each.missing or each.until <= now]:
            self.callers.remove(caller)
            with caller.socket:
                try:
                    caller.socket.sendall(self.told().encode())
                except OSError:
                    pass  # gone meanwhile


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def serve(path: str, control_path: str) -> None:
    """Check for ever."""
    if os.path.exists(control_path):
        os.unlink(control_path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as control:
        control.bind(control_path)
        checker = Checker(path, control)
        checker.read()
        control.listen(8)
        checker.run()


def ask(control_path: str, word: str) -> str:
    """Call a checker, and return what it says before it hangs up. Raises OSError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
        caller.settimeout(SETTLE + CALLER_TIMEOUT)
        caller.connect(control_path)
        caller.sendall(word.encode())
        heard = b""
        while data := caller.recv(65536):
            heard += data
        return heard.decode()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if sys.argv[1] == "--reload":
        ask(sys.argv[2], "reload")
    else:
        serve(sys.argv[1], sys.argv[2])
