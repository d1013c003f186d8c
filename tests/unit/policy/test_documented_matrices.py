"""The matrices of docs/policy-semantics.md are those of the evaluator."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.policy.judging import Judge

PAGE = Path(__file__).parents[3] / "docs" / "policy-semantics.md"
PAIRS = re.findall(r"```yaml\n(.*?)```\n\n```text\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)


def test_the_page_has_matrices() -> None:
    assert len(PAIRS) == 5


@pytest.mark.parametrize(("manifests", "matrix"), PAIRS)
def test_matrix_is_what_the_policies_beside_it_mean(manifests: str, matrix: str) -> None:
    judge = Judge(manifests)
    head, *rows = (line.split() for line in matrix.splitlines())
    assert head == ["x/a", "x/b", "y/a", "y/b"]
    expected = [[source, *(".X"[not judge.allows(source, target)] for target in head)] for source in head]
    assert rows == expected
