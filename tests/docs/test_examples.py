"""The documentation's examples are run, and print what the pages say.

How a page is written:

- A ``console`` block is a shell session. Lines after ``$ `` are typed (``> `` continues them), the others come out.
  Each page has one shell, an empty directory and labs of its own, so later examples build on earlier ones.
- A command must succeed, unless ``$ echo $?`` follows, which then shows its exit status.
- ``...`` in a line stands for any text, alone in a line for any lines. Times, process ids, ephemeral ports, dates and
  the width of columns need not be elided: they are made equal on both sides. Progress, which a terminal overwrites, is
  left out.
- A block whose first line is ``# NAME.yaml`` or ``# NAME.py`` is saved under that name. Other ``python`` blocks are
  run; what they print stands in a ``text`` block right below.
- ``<!-- before: COMMAND -->`` is run as well, without being shown.
- ``sudo ./cnilab`` is the command that is tested, without sudo; ``/run/cnilab`` is where labs are registered.
- Anything else, ``sh`` blocks for instance, is not run.
"""

from __future__ import annotations

import difflib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
AT_ONCE = 3  # pages: under Calico most of the time is spent waiting for BGP's timers
PATIENCE = 120  # s for one page
WIDTH = 100  # columns of the terminal
REGISTRY = "/run/cnilab"


class Step(NamedTuple):
    """One thing that a page makes its reader do, and what should come out (None: nobody looks)."""

    command: str
    expected: str | None
    line: int


class Output(NamedTuple):
    """What came out of a step. ``status`` is None if the session ended before it."""

    text: str
    status: int | None


BLOCK = re.compile(r"^```(?P<kind>\w*)[^\n]*\n(?P<body>.*?)^```$|^<!-- before: (?P<before>.*?) -->$", re.M | re.S)
FILE = re.compile(r"# (?P<name>[\w./-]+\.(?:yaml|py))\n")


def steps_of(text: str) -> list[Step]:
    """The examples of a page, in order."""
    steps: list[Step] = []
    for block in BLOCK.finditer(text):
        line = text.count("\n", 0, block.start()) + 1
        kind, body = block["kind"], block["body"]
        if block["before"] is not None:
            steps.append(Step(block["before"], None, line))
        elif kind == "console":
            steps += _session(body, line + 1)
        elif named := FILE.match(body or ""):
            name = named["name"]
            steps.append(Step(_here(f"mkdir -p {Path(name).parent} && cat > {name}", body), "", line))
        elif kind == "python":
            steps.append(Step(_here("python3 -", body), "", line))
        elif kind == "text" and steps and steps[-1].command.startswith("python3 -"):
            steps[-1] = steps[-1]._replace(expected=body)
    return steps


def _here(command: str, body: str) -> str:
    return f"{command} <<'END OF BLOCK'\n{body}END OF BLOCK"


def _session(body: str, first: int) -> Iterator[Step]:
    step: Step | None = None
    for number, line in enumerate(body.splitlines(), start=first):
        if line.startswith("$ "):
            if step is not None:
                yield step
            step = Step(line[2:], "", number)
        elif step is not None and line.startswith("> ") and not step.expected:
            step = step._replace(command=f"{step.command}\n{line[2:]}")
        elif step is not None:
            step = step._replace(expected=f"{step.expected}{line}\n")
    if step is not None:
        yield step


# Of every page with examples, but for those that speak of machines other than this one.
UNTRIED = ("vagrant.md",)
PAGES = [
    str(path.relative_to(ROOT))
    for pattern in ("README.md", "captures/README.md", "docs/*.md", "docs/cli/*.md", "docs/failures/*.md")
    for path in sorted(ROOT.glob(pattern))
    if path.name not in UNTRIED and steps_of(path.read_text(encoding="utf-8"))
]


class Shell:
    """Where a page is acted out: an empty directory, a registry of labs, and a bash that sees both."""

    def __init__(self) -> None:
        self._base = Path(tempfile.mkdtemp(prefix="docs-"))  # short: the path of a Unix socket has 107 bytes
        self._registry = self._base / "run"
        self.directory = self._base / "here"
        programs = self._base / "bin"
        for folder in (self._registry, self.directory / "captures", programs):
            folder.mkdir(parents=True, mode=0o700)
        for name in ("scenarios", "topologies", "captures/connectivity"):
            if (ROOT / name).exists():
                (self.directory / name).symlink_to(ROOT / name)
        cnilab = f'#!/bin/sh\nexec "{sys.executable}" -c "from emulator.cli import main; main()" "$@"\n'
        self._program(programs / "cnilab", cnilab)
        self._program(self.directory / "cnilab", cnilab)
        self._program(programs / "sudo", '#!/bin/sh\nexec "$@"\n')
        self._program(programs / "python3", f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        self._program(programs / "pytest", f'#!/bin/sh\nexec "{sys.executable}" -m pytest -p no:cacheprovider "$@"\n')
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("CNILAB_", "PYTEST_"))},
            "PATH": f"{programs}:{os.environ.get('PATH', '')}:/usr/sbin:/sbin",
            "PYTHONPATH": str(ROOT),
            "CNILAB_RUNTIME_DIR": str(self._registry),
            "COLUMNS": str(WIDTH),
            "LC_ALL": "C.UTF-8",
            "NO_COLOR": "1",
        }

    def _program(self, path: Path, text: str) -> None:
        path.write_text(text)
        path.chmod(0o755)

    def run(self, steps: list[Step]) -> list[Output]:
        """Act the steps out and end what they left running."""
        script = ["exec 2>&1 </dev/null", "status=0"]
        for step in steps:
            command = step.command.replace(f"{REGISTRY}/", f"{self._registry}/")
            # The subshell hands the status on to `echo $?`; \036 ends a record.
            script.append(f"(exit $status)\n{command}\nstatus=$?; printf '\\036%d\\036' $status")
        try:
            printed = self._bash("\n".join(script), PATIENCE)
        finally:
            self._bash("cnilab down --all --wait", PATIENCE)
            shutil.rmtree(self._base)
        records = printed.replace(str(self._registry), REGISTRY).split("\036")
        texts, codes = records[::2], records[1::2]
        outputs = [Output(text, int(code)) for text, code in zip(texts, codes, strict=False)]
        return outputs + [Output(texts[-1], None)] * (len(steps) - len(outputs))

    def _bash(self, script: str, timeout: float) -> str:
        with subprocess.Popen(
            ["bash", "-c", script], cwd=self.directory, env=self._environment, text=True, errors="replace",
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        ) as process:  # fmt: skip
            try:
                return process.communicate(timeout=timeout)[0]
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                return process.communicate()[0]


VOLATILE = [
    (re.compile(r"(?m)^(?!lab )\w[^\n|]* \(\d+\.\d s\)\n"), ""),  # progress
    (re.compile(r"\x1b\[[0-9;?]*[A-Za-z]"), ""),
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d+)?Z?"), "<date>"),
    (re.compile(r"(?<![\w:])\d\d:\d\d:\d\d(?:\.\d+)?(?![\w:])"), "<date>"),
    (re.compile(r"\d{8}-\d{6}"), "<date>"),
    (re.compile(r"(?m)\b\d+\s+\d+[smhd]$"), "<pid> <age>"),
    (re.compile(r"(?<![\w.])\d+(?:\.\d+)? ?(?:s|ms|µs)\b"), "<time>"),
    (re.compile(r"(?m) \d+\.\d$"), " <time>"),  # the last column of a trace
    (re.compile(r"(?<=which saw )(\S+):\d+"), r"\1:<port>"),
    (re.compile(r"(?<=[\d\]]):\d{5}\b"), ":<port>"),
    (re.compile(r"\budp \d+ →"), "udp <port> →"),
    (re.compile(r"(?m)(running\s+)\d+$"), r"\1<pid>"),
    (re.compile(r"[ \t]+"), " "),
    (re.compile(r"(?m)^ | $"), ""),
    (re.compile(r"\A\n+|\n+\Z"), ""),
]


def comparable(text: str) -> str:
    """The text without what differs from run to run."""
    text = text + "\n"
    for pattern, replacement in VOLATILE:
        text = pattern.sub(replacement, text)
    return text


def matches(expected: str, printed: str) -> bool:
    """Whether what was printed is what the page says, ``...`` standing for anything."""
    parts = []
    for line in comparable(expected).split("\n"):
        elided = ".*".join(map(re.escape, line.split("...")))
        parts.append(r"(?:.*\n)*?" if line == "..." else f"{elided}\n")
    return re.fullmatch("".join(parts), comparable(printed) + "\n") is not None


def play(page: str) -> tuple[list[Step], list[Output]]:
    """Act a page out."""
    steps = steps_of((ROOT / page).read_text(encoding="utf-8"))
    return steps, Shell().run(steps)


Played = dict[str, Future[tuple[list[Step], list[Output]]]]


@pytest.fixture(scope="module")
def played(request: pytest.FixtureRequest) -> Iterator[Played]:
    """Every page that this run is about, acted out side by side."""
    calls = [getattr(item, "callspec", None) for item in request.session.items]
    chosen = {call.params["page"] for call in calls if call is not None and "page" in call.params}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {page: pool.submit(play, page) for page in PAGES if page in chosen}


def _needs(page: str) -> list[pytest.MarkDecorator]:
    text = (ROOT / page).read_text(encoding="utf-8") if (ROOT / page).exists() else ""
    commands = "\n".join(step.command for step in steps_of(text))
    features = ["vxlan", "iptables", "bridge-nf"]
    if "calico" in commands or re.search(r"cnilab (demo|run|up)\b(?!.*--cni)", commands):
        features += ["bird", "ipset"]
    if "tshark" in commands:
        features.append("tshark")
    # Not marked as sandboxed: the labs bring their own, and a page would be acted out in each test's.
    marks = [pytest.mark.requires("netns", "veth", "ip", "mnexec", *features)]
    if "curl" in commands:
        marks.append(pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed"))
    return marks


@pytest.mark.parametrize("page", [pytest.param(page, marks=_needs(page)) for page in PAGES])
def test_examples_print_what_the_page_says(page: str, played: Played) -> None:
    steps, outputs = played[page].result()
    for step, output, following in zip(steps, outputs, [*steps[1:], None], strict=True):
        place = f"{page}:{step.line}: $ {step.command}"
        assert output.status is not None, f"{place}\nended the session, or took too long:\n{output.text}"
        shown = following is not None and following.command == "echo $?"
        assert output.status == 0 or shown, f"{place}\nexit status {output.status}:\n{output.text}"
        if step.expected is not None and not matches(step.expected, output.text):
            difference = difflib.unified_diff(
                comparable(step.expected).split("\n"),
                comparable(output.text).split("\n"),
                "the page",
                "printed",
                lineterm="",
            )
            pytest.fail(f"{place}\n" + "\n".join(difference), pytrace=False)


def test_an_example_that_prints_something_else_is_found() -> None:
    assert matches("a  b\n...\nc ... e\n", "a b\n1\n2\nc d e\n")
    assert matches("took 0.31 ms\n", "took 12.4 ms\n")
    assert not matches("TTL 62\n", "TTL 63\n")
    assert not matches("a\n", "a\nb\n")


def test_every_kind_of_example_is_read() -> None:
    page = "<!-- before: one -->\n```console\n$ two \\\n> more\nout\n$ three\n```\n"
    page += "```yaml\n# a.yaml\nx: 1\n```\n```python\nprint(1)\n```\n\n```text\n1\n```\n"
    steps = steps_of(page)
    assert [step.command.split("\n")[0] for step in steps] == [
        "one",
        "two \\",
        "three",
        "mkdir -p . && cat > a.yaml <<'END OF BLOCK'",
        "python3 - <<'END OF BLOCK'",
    ]
    assert [step.expected for step in steps] == [None, "out\n", "", "", "1\n"]
