"""What a lab is told when the machine lacks something, with made-up answers in place of the machine's."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from emulator.cni.styles import load_style, style_names
from emulator.errors import Unsupported
from emulator.kernel import capabilities, programs
from emulator.kernel.capabilities import Feature
from emulator.kernel.features import KERNEL, PROGRAMS
from emulator.kernel.modules import Modules

ANSWERS = {
    "veth": Feature("veth", "yes", kernel_option="CONFIG_VETH"),
    "bridge": Feature("bridge", "loadable", "module bridge", "CONFIG_BRIDGE"),
    "netem": Feature("netem", "no", "No such file or directory", "CONFIG_NET_SCH_NETEM", "install more; otherwise nft"),
    "ipip": Feature("ipip", "unknown", "not tried", "CONFIG_NET_IPIP", "install more"),
    "bird": Feature("bird", "no", "not installed", hint="apt-get install bird2"),
}


def answers(names: Collection[str]) -> dict[str, Feature]:
    return {name: ANSWERS[name] for name in names}


def test_what_works_or_loads_by_itself_is_no_reason_to_stop() -> None:
    capabilities.require(["veth", "bridge"], answers)


def test_all_that_is_missing_is_named_at_once_in_one_line_with_its_options() -> None:
    with pytest.raises(Unsupported) as caught:
        capabilities.require(["veth", "netem", "ipip", "bird"], answers)

    assert caught.value.features == ("netem", "ipip", "bird")
    assert str(caught.value) == (
        "this machine lacks netem (CONFIG_NET_SCH_NETEM): No such file or directory; "
        "ipip (CONFIG_NET_IPIP): not tried; bird: not installed"
    )


def test_the_hint_says_each_remedy_once_and_where_it_works() -> None:
    with pytest.raises(Unsupported) as caught:
        capabilities.require(["netem", "ipip", "bird"], answers)

    assert caught.value.hint == (
        "install more; otherwise nft; apt-get install bird2; works in: vagrant up (docs/vagrant.md)"
    )


def test_a_virtual_machine_is_not_recommended_for_a_program() -> None:
    with pytest.raises(Unsupported) as caught:
        capabilities.require(["bird"], answers)

    assert "vagrant" not in caught.value.hint


def test_a_name_that_is_in_no_table_is_refused() -> None:
    with pytest.raises(KeyError, match="no-such-feature"):
        capabilities.probe(["no-such-feature"])


def test_no_two_entries_share_a_name() -> None:
    names = [feature.name for feature in KERNEL] + [program.name for program in PROGRAMS]

    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", style_names())
def test_every_shipped_style_requires_only_what_the_table_knows(name: str) -> None:
    assert set(load_style(name).requires) <= set(capabilities.feature_names())


class Reached(Exception):
    """Something was tried."""


@pytest.fixture
def no_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object, **__: object) -> dict[str, str]:
        raise Reached

    monkeypatch.setattr("emulator.kernel.trial.run", run)


def modules(*, loaded: str = "", loadable: str = "") -> Modules:
    return Modules(frozenset({"ext4", *loaded.split()}), frozenset(), frozenset(loadable.split()))


@pytest.mark.usefixtures("no_trials")
def test_a_feature_whose_module_would_be_loaded_is_not_tried() -> None:
    found = capabilities.probe(["ipip"], modules=modules(loadable="ipip"))

    assert found["ipip"].state == "loadable"


@pytest.mark.usefixtures("no_trials")
def test_a_feature_is_not_tried_where_half_of_its_modules_would_be_loaded() -> None:
    found = capabilities.probe(["nft-numgen"], modules=modules(loaded="nf_tables", loadable="nft_numgen"))

    assert found["nft-numgen"].state == "loadable"
    assert found["nft-numgen"].detail == "module nft_numgen"


@pytest.mark.usefixtures("no_trials")
def test_a_feature_is_tried_where_its_modules_are_loaded() -> None:
    with pytest.raises(Reached):
        capabilities.probe(["ipip"], modules=modules(loaded="ipip"))


@pytest.mark.usefixtures("no_trials")
def test_a_feature_is_tried_before_use_even_if_that_loads_its_module() -> None:
    with pytest.raises(Reached):
        capabilities.probe(["ipip"], try_load=True, modules=modules(loadable="ipip"))


def test_answers_of_a_kernel_that_knows_a_nonsense_kind_prove_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emulator.kernel.trial.run", lambda trials, **_: dict.fromkeys(trials, ""))

    found = capabilities.probe(["veth"], modules=modules(loaded="veth"))

    assert found["veth"].state == "unknown"
    assert not found["veth"].usable


@pytest.mark.usefixtures("no_trials")
@pytest.mark.parametrize(("user", "state"), [(0, "loadable"), (1000, "no")])
def test_a_module_that_only_root_can_load_is_in_reach_of_root_alone(
    monkeypatch: pytest.MonkeyPatch, user: int, state: str
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: user)

    found = capabilities.probe(["bridge-nf"], modules=modules(loadable="br_netfilter"))

    assert found["bridge-nf"].state == state
    assert found["bridge-nf"].hint.startswith("sudo modprobe br_netfilter")


@pytest.mark.parametrize(
    ("found", "least", "older"),
    [
        ("1.0.6", "0.9.8", False),
        ("0.9.7", "0.9.8", True),
        ("2.0.12", "2.0", False),
        ("5.9", "5.10", True),
        ("", "1", False),
    ],
)
def test_versions_compare_number_by_number(found: str, least: str, older: bool) -> None:
    assert programs.older(found, least) is older
