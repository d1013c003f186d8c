"""The run directory: what a run leaves for people, for the report, and for whoever repeats it.

::

    OUT/meta.json  results.jsonl  hops.jsonl  report.html
    OUT/<style>/<scenario>/plan.json  trace.pcapng  logs/
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec

from emulator.capture.pcapng import write_annotated
from emulator.compare.records import RUN_SCHEMA, RunMeta, StyleMeta
from emulator.plan.render import as_json
from emulator.scenario.run import Outcome

PACKAGES = ("cnilab", "mininet", "pyroute2", "scapy", "click", "msgspec")


class RunDirectory:
    """Writes a run as it goes, so that one that is cut short leaves what it had."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        self._started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        for name in ("results.jsonl", "hops.jsonl"):
            (self.path / name).write_bytes(b"")

    def add(self, scenario: str, style: str, outcome: Outcome) -> None:
        """One scenario under one style."""
        folder = self.path / style.replace(":", "-") / scenario
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        _append(self.path / "results.jsonl", outcome.results)
        _append(self.path / "hops.jsonl", outcome.journeys)
        if outcome.plan is not None:
            (folder / "plan.json").write_bytes(as_json(outcome.plan))
        followed = [*(item.journey for item in outcome.journeys), *outcome.pieces]
        write_annotated(folder / "trace.pcapng", followed, outcome.events)
        for name, text in outcome.logs.items():
            (folder / "logs" / f"{name.replace('/', '_')}.log").write_text(text)

    def finish(
        self,
        *,
        command: Sequence[str],
        topology: str,
        scenarios: Sequence[str],
        styles: Sequence[StyleMeta],
        seed: int,
        wire_accurate: bool,
        programs: dict[str, str],
    ) -> RunMeta:
        """Write ``meta.json``."""
        meta = RunMeta(
            schema=RUN_SCHEMA,
            started=self._started,
            command=tuple(command),
            topology=topology,
            scenarios=tuple(scenarios),
            styles=tuple(styles),
            kernel=platform.release(),
            seed=seed,
            offloads="off" if wire_accurate else "on",
            versions={**_packages(), **programs},
            machine={
                "cpus": os.cpu_count() or 0,
                "architecture": platform.machine(),
                "python": platform.python_version(),
            },
        )
        (self.path / "meta.json").write_bytes(msgspec.json.format(msgspec.json.encode(meta), indent=2))
        return meta


def _append(path: Path, records: Sequence[msgspec.Struct]) -> None:
    with path.open("ab") as file:
        for record in records:
            file.write(msgspec.json.encode(record) + b"\n")


def _packages() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def hand_over(directory: str | os.PathLike[str]) -> None:
    """Give a run that root made (``sudo ./cnilab demo``) to whoever owns the folder that it is in."""
    path = os.path.realpath(directory)
    owner = os.stat(os.path.dirname(path))
    if os.geteuid() != 0 or owner.st_uid == 0:
        return
    os.chown(path, owner.st_uid, owner.st_gid)
    for _, folders, files, descriptor in os.fwalk(path):
        for name in (*folders, *files):
            os.chown(name, owner.st_uid, owner.st_gid, dir_fd=descriptor, follow_symlinks=False)
