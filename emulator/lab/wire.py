"""Our exceptions on the wire: what the lab process raises, its client raises again."""

from __future__ import annotations

from typing import Any

from emulator import errors
from emulator.errors import ApplyError, CnilabError, DaemonError, InputError, Problem, Unsupported


def error_to_wire(error: BaseException) -> dict[str, Any]:
    """JSON-able; an exception that is none of ours becomes a plain CnilabError with its type in the message."""
    if not isinstance(error, CnilabError):
        return {"type": "CnilabError", "message": f"internal error: {type(error).__name__}: {error}"}
    name = type(error).__name__
    data: dict[str, Any] = {
        "type": name if hasattr(errors, name) else "CnilabError" if error.exit_code == 3 else "UserError",
        "message": error.message,
        "hint": error.hint,
    }
    if isinstance(error, InputError):
        data["problems"] = [[p.source, p.subject, p.path, p.reason] for p in error.problems]
    if isinstance(error, Unsupported):
        data["features"] = list(error.features)
    if isinstance(error, ApplyError):
        data["subject"] = error.subject
    if isinstance(error, DaemonError):
        data["log"] = list(error.log)
    return data


def error_from_wire(data: dict[str, Any]) -> CnilabError:
    """The exception again. Unknown types become CnilabError."""
    kind = getattr(errors, str(data.get("type")), CnilabError)
    message, hint = str(data.get("message", "unknown error")), str(data.get("hint", ""))
    if isinstance(kind, type) and issubclass(kind, InputError) and "problems" in data:
        return kind([Problem(*map(str, problem)) for problem in data["problems"]], hint=hint)
    if kind is Unsupported:
        return Unsupported(message, hint=hint, features=tuple(map(str, data.get("features", ()))))
    if kind is ApplyError:
        return ApplyError(message, subject=str(data.get("subject", "")), hint=hint)
    if kind is DaemonError:
        return DaemonError(message, log=tuple(map(str, data.get("log", ()))), hint=hint)
    if isinstance(kind, type) and issubclass(kind, CnilabError) and not issubclass(kind, InputError):
        return kind(message, hint=hint)
    return CnilabError(message, hint=hint)
