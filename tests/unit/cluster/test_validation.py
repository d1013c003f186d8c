"""Names and numbers, judged in the API server's words."""

from __future__ import annotations

import pytest

from emulator.cluster import validation


@pytest.mark.parametrize("name", ["a", "web-0", "1a", "a" * 63])
def test_rfc1123_labels_are_accepted(name: str) -> None:
    assert validation.faults_of_label_name(name) == []


@pytest.mark.parametrize(
    "name",
    ["", "-a", "a-", "A", "a.b", "a_b", "a b", "../../x", "a;reboot", "a\n", "\na", "é", "a'b", 'a"b', "a\0b", "$(x)"],
)
def test_what_is_no_rfc1123_label_is_refused(name: str) -> None:
    (reason,) = validation.faults_of_label_name(name)
    assert reason == (
        "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end"
        " with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is"
        " '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
    )


def test_a_label_of_64_bytes_is_too_long() -> None:
    assert validation.faults_of_label_name("a" * 64) == ["must be no more than 63 bytes"]


def test_a_subdomain_may_have_dots_and_253_bytes() -> None:
    assert validation.faults_of_subdomain("node1.example.com") == []
    assert validation.faults_of_subdomain("a" * 253) == []
    assert validation.faults_of_subdomain("a" * 254) == ["must be no more than 253 bytes"]
    assert validation.faults_of_subdomain("a..b")


def test_a_service_name_starts_with_a_letter() -> None:
    assert validation.faults_of_rfc1035_label("web-1") == []
    assert validation.faults_of_rfc1035_label("1-web")


@pytest.mark.parametrize("key", ["app", "app.kubernetes.io/name", "A_b.c", "example.com/x"])
def test_label_keys_may_have_a_domain_before_a_slash(key: str) -> None:
    assert validation.faults_of_qualified_name(key) == []


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("", "name part must be non-empty"),
        ("/x", "prefix part must be non-empty"),
        ("example.com/", "name part must be non-empty"),
        ("a" * 64, "name part must be no more than 63 bytes"),
    ],
)
def test_a_wrong_label_key_is_explained(key: str, reason: str) -> None:
    assert reason in validation.faults_of_qualified_name(key)


def test_a_label_key_with_two_slashes_is_refused() -> None:
    (reason,) = validation.faults_of_qualified_name("a/b/c")
    assert reason.endswith("with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')")


@pytest.mark.parametrize("value", ["a b", "a\n", "'", '"', "-a", "a" * 64])
def test_label_values_with_other_characters_are_refused(value: str) -> None:
    assert validation.faults_of_label_value(value)


def test_a_label_value_may_be_empty() -> None:
    assert validation.faults_of_label_value("") == []


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_ports_outside_16_bits_are_refused(port: int) -> None:
    assert validation.faults_of_port(port) == ["must be between 1 and 65535, inclusive"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("sixteen-letters-", "must be no more than 15 characters"),
        ("HTTP", "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)"),
        ("80", "must contain at least one letter (a-z)"),
        ("a--b", "must not contain consecutive hyphens"),
        ("-a", "must not begin or end with a hyphen"),
    ],
)
def test_port_names_follow_rfc6335(name: str, reason: str) -> None:
    assert reason in validation.faults_of_port_name(name)


@pytest.mark.parametrize("text", ["10.0.0.1", "fd00::1"])
def test_addresses_of_both_families_are_accepted(text: str) -> None:
    assert validation.faults_of_address(text) == []


@pytest.mark.parametrize("text", ["10.0.0.256", "010.0.0.1", "fe80::1%eth0", "10.0.0.1/24", "", "1"])
def test_what_is_no_address_is_refused(text: str) -> None:
    assert validation.faults_of_address(text)


@pytest.mark.parametrize("text", ["10.0.0.0/33", "10.0.0.0", "10.0.0.0/255.0.0.0", "10.0.0.0/-1", "x/8", "10.0.0.0/٨"])
def test_what_is_no_cidr_is_refused(text: str) -> None:
    assert validation.faults_of_cidr(text)


def test_a_cidr_with_host_bits_names_the_network_that_was_meant() -> None:
    assert validation.faults_of_cidr("10.244.1.5/16") == [
        "must not have bits set beyond the prefix length, did you mean 10.244.0.0/16?"
    ]
