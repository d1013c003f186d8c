"""YAML as Kubernetes reads it, and what is refused of it."""

from __future__ import annotations

from typing import Any

import pytest

from emulator.cluster.strict_yaml import Malformed, documents


def value_of(text: str) -> Any:
    (document,) = documents(text)
    return document.value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: 22:22", "22:22"),
        ("a: 2024-01-01", "2024-01-01"),
        ("a: 0644", 0o644),
        ("a: 0o17", 0o17),
        ("a: 0x1f", 31),
        ("a: 1e3", 1000.0),
        ("a: -1.5", -1.5),
        ("a: yes", True),
        ("a: off", False),
        ("a: ~", None),
        ("a:", None),
        ("a: '1'", "1"),
        ("a: !!str 1", "1"),
        ("a: 08", "08"),
        ("a: 1.2.3", "1.2.3"),
        ("a: 100m", "100m"),
        ("a: 1e999", "1e999"),
        ("a: .inf", ".inf"),
        ("a: " + "9" * 30, 1e30),
        ("a: |\n  x\n  y\n", "x\ny\n"),
        ("a: =", "="),
    ],
)
def test_scalars_mean_what_they_mean_to_kubectl(text: str, value: object) -> None:
    found = value_of(text)["a"]
    assert found == value
    assert type(found) is type(value)


def test_keys_become_strings_as_in_json() -> None:
    assert value_of("{1: a, true: b, 1.5: c}") == {"1": "a", "true": "b", "1.5": "c"}


def test_documents_of_a_stream_know_their_lines_and_empty_ones_are_left_out() -> None:
    found = list(documents("a: 1\n---\n---\n# nothing\n---\nb: 2\n"))
    assert [(document.value, document.line) for document in found] == [({"a": 1}, 1), ({"b": 2}, 6)]


def test_anchors_and_merge_keys_work() -> None:
    assert value_of("x: &x {a: 1, b: 2}\ny: {<<: *x, b: 3}\nz: *x")["y"] == {"a": 1, "b": 3}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: 1\nb: 2\na: 3", 'line 3: key "a" is given twice'),
        ("a: [1\nb: }", "line 2: not valid YAML"),
        ("a: *b", "alias *b has no complete anchor"),
        ("&a [*a]", "alias *a has no complete anchor"),
        ("a: !!python/object/apply:os.system [id]", "is not allowed"),
        ("a: !!binary aGk=", "is not allowed"),
        ("? {a: 1}\n: b", "a key must be a string"),
        ("a: \x00", "not valid YAML"),
        ("<<: 1", "a merge key << needs"),
        ("a: !!int x", "is not of type int"),
        ("[" * 101 + "]" * 101, "nested more than 100 levels deep"),
        ("[" * 200_000, "nested more than 100 levels deep"),
        ("- " * 200_000, "nested more than 100 levels deep"),
        ("{a: " * 200_000, "nested more than 100 levels deep"),
    ],
)
def test_yaml_that_is_wrong_or_dangerous_is_refused_with_its_line(text: str, reason: str) -> None:
    with pytest.raises(Malformed) as error:
        list(documents(text))
    assert reason in str(error.value)


def test_a_billion_laughs_are_refused_before_they_are_expanded() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    with pytest.raises(Malformed, match="aliases expand to more than"):
        list(documents("\n".join(lines)))
