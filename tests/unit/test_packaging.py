"""What a wheel holds, and that an installation out of it finds it."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a wheel would hold, as a folder. Built from a copy, so that the checkout gets no build folder."""
    pytest.importorskip("setuptools")
    source = tmp_path_factory.mktemp("source") / "checkout with spaces"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "runs"))
    target = tmp_path_factory.mktemp("built")
    command = [sys.executable, "-W", "ignore", "setup.py", "-q", "build_py", "--build-lib", str(target)]
    subprocess.run(command, cwd=source, check=True, capture_output=True, timeout=120)
    return target


def files(folder: Path) -> set[str]:
    """The files below a folder, as paths relative to it."""
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_wheel_holds_every_file_of_the_package(built: Path) -> None:
    assert files(ROOT / "emulator") - files(built / "emulator") == set()


@pytest.mark.parametrize("folder", ["topologies", "scenarios"])
def test_wheel_holds_what_the_checkout_ships(built: Path, folder: str) -> None:
    assert files(ROOT / folder)
    assert files(built / "emulator" / folder) == files(ROOT / folder)


def test_wheel_holds_nothing_but_the_package(built: Path) -> None:
    assert [path.name for path in built.iterdir()] == ["emulator"]


def test_an_installation_from_the_wheel_finds_the_shipped_topologies(built: Path, tmp_path: Path) -> None:
    code = (
        "import emulator; from emulator.cluster.topology import load_topology, topology_names; "
        "print(emulator.__file__, load_topology('three-nodes').name, *topology_names())"
    )

    # -P and a neutral folder: nothing but PYTHONPATH leads to a package called emulator.
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(built)},
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.stdout.startswith(str(built))
    assert "three-nodes" in done.stdout


def setup_cfg() -> ConfigParser:
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    return config


def test_every_entry_point_leads_to_something_callable() -> None:
    for group, text in setup_cfg()["options.entry_points"].items():
        for line in filter(None, text.splitlines()):
            module, _, attribute = line.partition("=")[2].strip().partition(":")
            found = importlib.import_module(module)
            assert not attribute or callable(getattr(found, attribute)), f"{group}: {line}"


def test_every_requirement_says_in_the_documentation_what_it_is_for() -> None:
    documented = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8").lower()
    config = setup_cfg()
    lines = "\n".join([config["options"]["install_requires"], *config["options.extras_require"].values()])
    names = [re.split(r"[<>=;\[ ]", line.strip())[0] for line in lines.splitlines() if re.match(r"\s*[A-Za-z]", line)]

    assert [name for name in names if f"`{name.lower()}`" not in documented] == []


def test_every_package_of_the_distribution_is_documented() -> None:
    documented = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    rows = [line.split() for line in (ROOT / "scripts" / "packages.txt").read_text().splitlines()]
    packages = {row[0] for row in rows if row and row[0] != "#"}

    assert [package for package in sorted(packages) if f"`{package}`" not in documented] == []
