"""CNI configuration lists are read as libcni reads them, and everything that is wrong with one is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from emulator.cni.netconf import Network, as_text, at_node, from_text, load_network, parse_network
from emulator.errors import InputError, NotFound

BRIDGE: dict[str, Any] = {"type": "bridge", "ipam": {"type": "host-local", "subnet": "{{.PodCIDR}}"}}


def network(**fields: Any) -> Network:
    return parse_network(
        json.dumps({"cniVersion": "1.0.0", "name": "net", "plugins": [BRIDGE], **fields}), "x.conflist"
    )


def problems(text: str) -> list[str]:
    with pytest.raises(InputError) as error:
        parse_network(text, "x.conflist")
    return [str(problem) for problem in error.value.problems]


def wrong(**fields: Any) -> list[str]:
    return problems(json.dumps({"cniVersion": "1.0.0", "name": "net", "plugins": [BRIDGE], **fields}))


def test_a_list_in_order_is_taken_as_it_is() -> None:
    assert network() == Network("net", "1.0.0", (BRIDGE,))


def test_a_single_plugin_becomes_a_list_of_one() -> None:
    plugin = {"cniVersion": "0.4.0", "name": "net", **BRIDGE}
    assert parse_network(json.dumps(plugin), "x.conf") == Network("net", "0.4.0", (plugin,))


@pytest.mark.parametrize(
    ("fields", "version"),
    [
        ({"cniVersion": "0.3.1"}, "0.3.1"),
        ({"cniVersions": ["0.4.0", "1.1.0", "2.0.0"]}, "1.1.0"),
        ({"cniVersion": "3.0.0", "cniVersions": ["0.4.0", "1.0.0"]}, "1.0.0"),
    ],
)
def test_the_highest_version_that_is_known_is_spoken(fields: dict[str, Any], version: str) -> None:
    assert network(**fields).version == version


def test_a_list_without_a_version_is_of_the_first() -> None:
    assert parse_network(json.dumps({"name": "net", "plugins": [BRIDGE]}), "x.conflist").version == "0.1.0"


@pytest.mark.parametrize("value", [True, "true", "TRUE"])
def test_flags_may_be_words(value: bool | str) -> None:
    found = network(disableCheck=value, disableGC=value)
    assert (found.disable_check, found.disable_gc) == (True, True)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"name": "../etc"}, "x.conflist: name: '../etc' is no network name"),
        ({"cniVersion": "1.2.0"}, "x.conflist: cniVersion: '1.2.0' is no version of the specification: 0.1.0, "),
        ({"cniVersion": 1}, "x.conflist: cniVersion: must be a text"),
        ({"cniVersions": "1.0.0"}, "x.conflist: cniVersions: must be a list of versions"),
        ({"disableCheck": "no"}, "x.conflist: disableCheck: must be true or false"),
        ({"plugins": []}, "x.conflist: plugins: no plugin in the list"),
        ({"plugins": {}}, "x.conflist: plugins: must be a list"),
        ({"plugins": [{}]}, "x.conflist: plugins[0].type: is required"),
        ({"plugins": ["bridge"]}, "x.conflist: plugins[0]: must be an object"),
        ({"plugins": [BRIDGE, {"type": "../bin/sh"}]}, "x.conflist: plugins[1].type: '../bin/sh' is no plugin"),
        ({"plugins": [{"type": "a b"}]}, "x.conflist: plugins[0].type: 'a b' is no plugin name"),
        ({"plugins": [{"type": "x", "ipam": {"type": "/bin/sh"}}]}, "x.conflist: plugins[0].ipam.type: '/bin/sh'"),
        ({"plugins": [{"type": "x", "capabilities": ["mac"]}]}, "x.conflist: plugins[0].capabilities: must map names"),
        ({"plugins": [{"type": "x", "subnet": "{{.Subnet}}"}]}, "x.conflist: {{.Subnet}} is not understood"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_its_place(fields: dict[str, Any], reason: str) -> None:
    (problem,) = wrong(**fields)
    assert problem.startswith(reason)


def test_all_that_is_wrong_is_told_at_once() -> None:
    assert len(wrong(name="", cniVersion="9", plugins=[{"type": ""}, {}])) == 4


def test_what_is_no_json_is_told_with_line_and_column() -> None:
    assert problems('{"name": "net",\n "plugins": [}') == [
        "x.conflist: is no JSON: expecting value (line 2, column 14)"
    ]


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="there is no CNI configuration"):
        load_network(str(tmp_path / "none.conflist"))


def test_plugins_of_the_folder_named_after_the_network_are_appended(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "20-b.conf").write_text('{"type": "tuning"}')
    (tmp_path / "net" / "10-a.conf").write_text('{"type": "portmap"}')
    (tmp_path / "net" / "notes.txt").write_text("no plugin")
    file = tmp_path / "10-net.conflist"
    file.write_text(json.dumps({"cniVersion": "1.1.0", "name": "net", "plugins": [BRIDGE]}))
    assert [plugin["type"] for plugin in load_network(str(file)).plugins] == ["bridge", "portmap", "tuning"]


def test_load_only_inlined_plugins_leaves_them_out(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "10-a.conf").write_text('{"type": "portmap"}')
    file = tmp_path / "10-net.conflist"
    file.write_text(json.dumps({"name": "net", "loadOnlyInlinedPlugins": True, "plugins": [BRIDGE]}))
    assert [plugin["type"] for plugin in load_network(str(file)).plugins] == ["bridge"]


def test_the_normal_form_says_all() -> None:
    given = network(disableCheck=True, disableGC=True)
    assert from_text(as_text(given)) == given


def test_a_nodes_own_range_takes_the_templates_place() -> None:
    (plugin,) = at_node(network(), ("10.244.3.0/24",)).plugins
    assert plugin["ipam"]["subnet"] == "10.244.3.0/24"
    assert BRIDGE["ipam"]["subnet"] == "{{.PodCIDR}}"
