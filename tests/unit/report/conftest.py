from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from emulator.compare.compare import compare, load_run
from emulator.compare.comparison import Comparison


@pytest.fixture(scope="session")
def synthetic() -> ModuleType:
    """The generator of runs beside this file; test folders are no packages, so it is loaded by its path."""
    spec = importlib.util.spec_from_file_location("synthetic_run", Path(__file__).with_name("synthetic_run.py"))
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def compared(synthetic: ModuleType, tmp_path: Path) -> Callable[[str], Comparison]:
    """A synthetic run by name, written, read back and compared."""
    return lambda name: compare(load_run(getattr(synthetic, name)(tmp_path / name)))
