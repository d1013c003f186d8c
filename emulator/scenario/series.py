"""Several scenarios under several styles, one lab after another, into one run directory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from emulator.cni.styles import style_key
from emulator.compare.records import RunMeta, StyleMeta
from emulator.errors import CnilabError, PluginError, Unsupported
from emulator.kernel.capabilities import probe
from emulator.kernel.features import PROGRAMS
from emulator.policy.enforcer import PolicyMode
from emulator.scenario.load import Loaded
from emulator.scenario.model import runs_under
from emulator.scenario.run import Progress, failed, run_scenario
from emulator.scenario.rundir import RunDirectory


class Series(NamedTuple):
    """What came of it. ``all_met``: every style ran, and every expectation holds."""

    meta: RunMeta
    all_met: bool


def run_series(
    loaded: Sequence[Loaded],
    styles: Sequence[str],
    directory: str | os.PathLike[str],
    *,
    command: Sequence[str] = (),
    allow_missing: bool = False,
    policy_mode: PolicyMode = "faithful",
    progress: Progress = lambda _text: None,
) -> Series:
    """Run everything. A style that this kernel or topology cannot carry becomes a row with its reason; any other
    error ends the run, with what was done by then on disk.

    Raises Unsupported if no style could run at all.
    """
    run = RunDirectory(directory)
    metas: dict[str, StyleMeta] = {}
    met = True
    refused: CnilabError | None = None
    for item in loaded:
        for spec in styles:
            style = style_key(spec)
            scenario = item.scenario
            if not runs_under(scenario.styles, style):
                continue
            tell = _Prefixed(progress, f"{scenario.name} under {style}")
            try:
                outcome = run_scenario(item, spec, allow_missing=allow_missing, policy_mode=policy_mode, progress=tell)
            except (Unsupported, PluginError) as error:
                refused = error
                metas.setdefault(style, failed(style, error))
                met = False
                continue
            met = met and all(check.met for result in outcome.results for check in result.checks)
            metas[style] = _merged(metas.get(style), outcome.meta)
            run.add(scenario.name, style, outcome)
    if refused is not None and not any(not meta.error for meta in metas.values()):
        raise refused
    meta = run.finish(
        command=command,
        topology=", ".join(dict.fromkeys(item.scenario.topology for item in loaded)),
        scenarios=[item.scenario.name for item in loaded],
        styles=[metas[style] for style in map(style_key, styles) if style in metas],
        seed=loaded[0].scenario.seed,
        wire_accurate=all(item.scenario.wire_accurate for item in loaded),
        programs=_program_versions(),
    )
    return Series(meta, met)


class _Prefixed:
    """Progress that says which scenario and style it is about."""

    def __init__(self, progress: Progress, prefix: str) -> None:
        self._progress = progress
        self._prefix = prefix

    def __call__(self, text: str) -> None:
        self._progress(f"{self._prefix}: {text}")


def _merged(known: StyleMeta | None, new: StyleMeta) -> StyleMeta:
    """The counts of several scenarios under one style added up."""
    if known is None or known.error:
        return new
    return msgspec.structs.replace(
        new,
        captured=known.captured + new.captured,
        lost=known.lost + new.lost,
        uncorrelated=known.uncorrelated + new.uncorrelated,
        labels=tuple(dict.fromkeys((*known.labels, *new.labels))),
        setup_seconds=max(known.setup_seconds, new.setup_seconds),
    )


def _program_versions() -> dict[str, str]:
    """What is installed of the programs that labs use."""
    found = probe([program.name for program in PROGRAMS])
    return {program.executable: found[program.name].version for program in PROGRAMS if found[program.name].version}
