"""What this machine can do: the answers to the table of :mod:`emulator.kernel.features`.

    probe()                    every feature, without loading a kernel module
    probe(["netem"], try_load=True)   one, for real: what a lab that needs it would do anyway
    require(style.requires)    raises Unsupported with one line that names all that is missing

A feature is ``yes`` (tried, works), ``loadable`` (its module is on disk and not loaded, so it was not tried), ``no``
(tried, or its module does not exist) or ``unknown`` (trying might load a module, and that was not allowed).
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from emulator.errors import Unsupported
from emulator.kernel import attempts, distribution, programs, trial
from emulator.kernel.features import BY_NAME, PROGRAMS, KernelFeature, Program
from emulator.kernel.modules import Modules

State = Literal["yes", "loadable", "no", "unknown"]

# Kinds that no kernel has. If one of them is "there", the answers about its sort mean nothing.
CONTROLS: dict[str, trial.Trial] = {
    "control-link": attempts.link("cnilab-none"),
    "control-qdisc": attempts.qdisc("nil"),
}

MODPROBE_TIMEOUT = 30.0  # seconds


@dataclass(frozen=True)
class Feature:
    """One answer. ``detail`` says how it showed, ``hint`` what to do about it.

    ``kernel_option`` is for kernel features, ``path`` and ``version`` for programs.
    """

    name: str
    state: State
    detail: str = ""
    kernel_option: str = ""
    hint: str = ""
    path: str = ""
    version: str = ""

    @property
    def usable(self) -> bool:
        """Whether it can be counted on: it works, or the kernel will load it when it is used."""
        return self.state in ("yes", "loadable")


def feature_names() -> list[str]:
    """Every name that ``probe`` and ``require`` know."""
    return sorted(BY_NAME)


def probe(
    names: Collection[str] | None = None, try_load: bool = False, *, modules: Modules | None = None
) -> dict[str, Feature]:
    """The state of the named features and programs, of all by default.

    Without ``try_load`` nothing is tried that would load a kernel module. With it everything is, and where the kernel
    does not load a module by itself, root does by modprobe. Raises KeyError for a name that is not in the table.
    """
    entries = [BY_NAME[name] for name in (BY_NAME if names is None else dict.fromkeys(names))]
    modules = Modules.read() if modules is None else modules
    kernel = _probe_kernel([entry for entry in entries if isinstance(entry, KernelFeature)], try_load, modules)
    found = {}
    for entry in entries:
        found[entry.name] = kernel[entry.name] if isinstance(entry, KernelFeature) else _probe_program(entry)
    return found


def require(names: Collection[str], probe: Callable[[Collection[str]], Mapping[str, Feature]] | None = None) -> None:
    """Raise Unsupported if anything named is missing. Tries for real, so that a kernel loads what a lab will use.

    ``probe`` stands in for asking this machine.
    """
    asked = probe(names) if probe is not None else probe_for_use(names)
    missing = [feature for feature in asked.values() if not feature.usable]
    if missing:
        raise unsupported(missing)


def probe_for_use(names: Collection[str]) -> dict[str, Feature]:
    """The state of features that are about to be used: modules may be loaded."""
    return probe(names, try_load=True)


def unsupported(missing: Collection[Feature]) -> Unsupported:
    """The error that names all of ``missing``, with their kernel options and what to do."""
    said = []
    for feature in missing:
        option = f" ({feature.kernel_option})" if feature.kernel_option else ""
        reason = f": {feature.detail}" if feature.detail else ""
        said.append(f"{feature.name}{option}{reason}")
    hints = list(dict.fromkeys(hint for feature in missing for hint in feature.hint.split("; ") if hint))
    if any(feature.kernel_option for feature in missing):
        hints.append("works in: vagrant up (docs/vagrant.md)")
    return Unsupported(
        f"this machine lacks {'; '.join(said)}",
        hint="; ".join(hints),
        features=tuple(feature.name for feature in missing),
    )


def program_versions() -> dict[str, str]:
    """The version of each installed program that labs use, for the record of a run: ``{"bird": "2.0.12", ...}``."""
    found = [(program, programs.find(program.executable)) for program in PROGRAMS if program.least]
    return {program.executable: programs.version(path, program.version) for program, path in found if path}


# the kernel


def _probe_kernel(wanted: list[KernelFeature], try_load: bool, modules: Modules) -> dict[str, Feature]:
    if try_load and os.geteuid() == 0:
        for feature in wanted:
            if not feature.autoload and any(modules.presence(name) == "loadable" for name in feature.modules):
                _load(feature.modules)
    found: dict[str, Feature] = {}
    tried: list[KernelFeature] = []
    for feature in wanted:
        presence = {name: modules.presence(name) for name in feature.modules}
        waiting = [name for name, state in presence.items() if state == "loadable"]
        if try_load or set(presence.values()) <= {"there", "absent"}:
            # What does not exist cannot be loaded: trying it is as harmless as trying what is there.
            tried.append(feature)
        elif "absent" in presence.values():
            absent = [name for name, state in presence.items() if state == "absent"]
            found[feature.name] = _answer(feature, "no", f"this kernel has no module {', '.join(absent)}", modules)
        elif waiting:
            found[feature.name] = _answer(feature, "loadable", f"module {', '.join(waiting)}", modules)
        else:
            detail = "not tried, as that might load a module (`cnilab doctor --try` does)"
            found[feature.name] = _answer(feature, "unknown", detail, modules)
    for unprivileged in (False, True):
        found |= _try([feature for feature in tried if feature.unprivileged is unprivileged], unprivileged, modules)
    return found


def _load(names: Collection[str]) -> None:
    path = programs.find("modprobe")
    if path is not None:
        subprocess.run(
            [path, "-a", "-q", *names],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=MODPROBE_TIMEOUT,
            check=False,
        )


def _try(features: list[KernelFeature], unprivileged: bool, modules: Modules) -> dict[str, Feature]:
    if not features:
        return {}
    reasons = trial.run({feature.name: feature.attempt for feature in features} | CONTROLS, unprivileged=unprivileged)
    if any(reasons[name] == "" for name in CONTROLS):
        detail = "this kernel claims to know a device kind that does not exist, so its answers prove nothing"
        return {feature.name: _answer(feature, "unknown", detail, modules) for feature in features}
    return {
        feature.name: _answer(feature, "no" if reasons[feature.name] else "yes", reasons[feature.name], modules)
        for feature in features
    }


def _answer(feature: KernelFeature, state: State, detail: str, modules: Modules) -> Feature:
    by_hand = not feature.autoload and any(modules.presence(name) == "loadable" for name in feature.modules)
    hints = []
    if by_hand and state != "yes":
        # The kernel does not load it on first use, and only the machine's root can.
        hints.append(f"sudo modprobe {' '.join(feature.modules)}")
        state = "loadable" if os.geteuid() == 0 and state == "loadable" else "no"
    elif state == "no" and trial.NOT_PERMITTED in detail:
        hints.append("use sudo")
    elif state == "no" and "is not installed" in detail:
        hints.append(distribution.current().install_hint(_package_of(detail.split(" ", 1)[0])))
    elif state == "no" and feature.option.startswith("CONFIG_") and (feature.modules or not modules.supported):
        # What is never a module is in no package either, but in another kernel.
        hints.append(distribution.current().kernel_hint(os.uname().release, modules.supported))
    if state == "no" and feature.without:
        hints.append(f"otherwise {feature.without}")
    return Feature(feature.name, state, detail, feature.option, "; ".join(hint for hint in hints if hint))


# programs


def _probe_program(program: Program) -> Feature:
    path = programs.find(program.executable)
    hint = distribution.current().install_hint(program.packages)
    if path is None:
        return Feature(program.name, "no", "not installed", hint=hint)
    version = programs.version(path, program.version) if program.least else ""
    if programs.older(version, program.least):
        detail = f"{path} is {version}, at least {program.least} is needed"
        return Feature(program.name, "no", detail, hint=hint, path=path, version=version)
    return Feature(program.name, "yes", path=path, version=version)


def _package_of(executable: str) -> dict[str, str]:
    for entry in BY_NAME.values():
        if isinstance(entry, Program) and executable.startswith(entry.executable.removesuffix("-restore")):
            return entry.packages
    return {}
