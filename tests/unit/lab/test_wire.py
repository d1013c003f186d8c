"""What the lab process raises, its client raises again."""

from __future__ import annotations

import pytest

from emulator.errors import (
    AddressesExhausted,
    AlreadyExists,
    ApplyError,
    CheckFailed,
    CnilabError,
    DaemonError,
    ManifestError,
    NotFound,
    Problem,
    SandboxError,
    TopologyError,
    Unsupported,
    UserError,
)
from emulator.lab.wire import error_from_wire, error_to_wire

PROBLEMS = [Problem("web.yaml", "Pod default/a", "spec.containers", "Required value"), Problem("b", "", "", "bad")]


@pytest.mark.parametrize(
    "error",
    [
        CnilabError("a", hint="b"),
        UserError("a", hint="b"),
        NotFound("a"),
        AlreadyExists("a"),
        AddressesExhausted("full"),
        SandboxError("a"),
        CheckFailed("a"),
        ManifestError(PROBLEMS, hint="see the API reference"),
        TopologyError(PROBLEMS[:1]),
        Unsupported("no netem", hint="--allow-missing", features=("netem",)),
        ApplyError("refused", subject="route 10.0.0.0/8", hint="h"),
        DaemonError("bird died", log=("line 1", "line 2")),
    ],
    ids=lambda error: type(error).__name__,
)
def test_error_survives_the_wire(error: CnilabError) -> None:
    again = error_from_wire(error_to_wire(error))
    assert type(again) is type(error)
    assert vars(again) == vars(error)
    assert again.exit_code == error.exit_code


def test_foreign_exception_becomes_an_internal_error() -> None:
    again = error_from_wire(error_to_wire(KeyError("x")))
    assert type(again) is CnilabError
    assert "internal error: KeyError" in again.message


@pytest.mark.parametrize("kind", ["Problem", "annotations", "dataclass", "Nonsense", ""])
def test_type_that_is_no_exception_of_ours_is_not_trusted(kind: str) -> None:
    assert type(error_from_wire({"type": kind, "message": "m"})) is CnilabError
