"""The JSON twin of the comparison: schema ``cnilab.comparison/v1``, documented in docs/report.md."""

from __future__ import annotations

from typing import Any

import msgspec

from emulator.capture.model import Journey
from emulator.compare.comparison import COMPARISON_SCHEMA, Comparison, FlowColumn, FlowComparison
from emulator.compare.records import FlowJourney


def comparison_as_dict(comparison: Comparison) -> dict[str, Any]:
    """The comparison as plain data that any JSON writer takes. Names are as in the run, not made safe for terminals."""
    met, total = comparison.met
    return {
        "schema": COMPARISON_SCHEMA,
        "kind": comparison.kind,
        "columns": msgspec.to_builtins(comparison.columns),
        "runs": [{"name": name, "meta": msgspec.to_builtins(meta)} for name, meta in comparison.runs],
        "warnings": msgspec.to_builtins(comparison.warnings),
        "expectations": {"met": met, "total": total},
        "flows": [_flow(flow) for flow in comparison.flows],
    }


def journey_as_dict(journey: Journey) -> dict[str, Any]:
    """One packet's hops as plain data: what ``hops.jsonl`` holds of it."""
    return {"id": journey.id, "hops": msgspec.to_builtins(journey.hops)}


def _flow(flow: FlowComparison) -> dict[str, Any]:
    return {
        "scenario": flow.scenario,
        "flow": flow.flow,
        "title": flow.title,
        "under": flow.under,
        "differences": flow.differences,
        "rows": [
            {
                "label": row.label,
                "kind": row.kind,
                "differs": row.differs,
                "values": [cell.value for cell in row.cells],
                "details": [cell.detail for cell in row.cells],
                "because": [
                    [{"ns": ns, **msgspec.to_builtins(reason)} for ns, reason in cell.because] for cell in row.cells
                ],
            }
            for row in flow.rows
        ],
        "columns": [_column(column) for column in flow.columns],
    }


def _column(column: FlowColumn) -> dict[str, Any]:
    result = column.result
    if result is None:
        return {"key": column.column.key, "missing": column.missing}
    met, total = column.met
    return {
        "key": column.column.key,
        "verdict": result.verdict,
        "arrived": column.arrived,
        "expectations": {"met": met, "total": total, "checks": msgspec.to_builtins(result.checks)},
        "path": msgspec.to_builtins(column.path),
        "reply_path": msgspec.to_builtins(column.reply_path),
        "hook_passes": result.hook_passes,
        "packets": column.packets,
        "encapsulation_bytes": column.encapsulation_bytes,
        "one_way_us": column.one_way,
        "round_trip_us": column.round_trip,
        "request": _journey(column.request),
        "reply": _journey(column.reply),
        "error": _journey(column.error),
    }


def _journey(item: FlowJourney | None) -> dict[str, Any] | None:
    return journey_as_dict(item.journey) if item else None
