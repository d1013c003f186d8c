"""Running a chain of CNI plugins, as a container runtime does: what each is told, and what its answer means.

::

    ADD   bridge ──result──▶ portmap ──result──▶ bandwidth ──▶ result of the attachment, cached by the caller
    DEL   bandwidth ─▶ portmap ─▶ bridge        each with the cached result
    CHECK bridge ─▶ portmap ─▶ bandwidth        each with the cached result

How a plugin is executed is the caller's business (:data:`Execute`): nothing here starts a process.

Sources: containernetworking/cni SPEC.md (sections 2 to 4), libcni/api.go, pkg/invoke/exec.go.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from emulator.cni.netconf import UNVERSIONED, VERSIONS, Network, Plugin, at_least
from emulator.cni.results import Result, code_in_words, error_of, parse_result
from emulator.errors import PluginError, UserError

CHECK_SINCE = "0.4.0"
STATUS_SINCE = "1.1.0"  # and GC
PREVIOUS_SINCE = "0.4.0"  # DEL is told the result of ADD

_SHOWN = 80  # characters of what a plugin should not have printed


class Container(NamedTuple):
    """Whom the plugins are to attach: its id, the path of its network namespace, the device to make there, the pairs of
    CNI_ARGS, and what the runtime offers for each capability."""

    id: str
    netns: str
    device: str
    args: tuple[tuple[str, str], ...] = ()
    capabilities: Mapping[str, Any] = {}


class Call(NamedTuple):
    """One execution of a plugin: its type, CNI_COMMAND, its environment, and its standard input."""

    plugin: str
    command: str
    environment: dict[str, str]
    stdin: bytes


class Answer(NamedTuple):
    """How it went. ``code`` is the exit status, negative for a signal. ``killed`` says why the plugin was killed if it
    did not end by itself (``did not end within 30 s``); ``remarks`` what else it did that it should not have."""

    code: int
    stdout: bytes
    stderr: str = ""
    killed: str = ""
    remarks: tuple[str, ...] = ()


Execute = Callable[[Call], Answer]
Remark = Callable[[str, str, str], None]  # plugin, command, text


class Chain:
    """The plugins of one network. ``folders`` are where they look for others (CNI_PATH); ``remark`` hears of conduct
    that is no failure."""

    def __init__(self, network: Network, folders: Sequence[str], execute: Execute, remark: Remark) -> None:
        self.network = network
        self._path = ":".join(folders)
        self._execute = execute
        self._remark = remark

    @property
    def knows_status(self) -> bool:
        """Whether the list's version has STATUS and GC."""
        return at_least(self.network.version, STATUS_SINCE)

    def require_versions(self) -> None:
        """Ask every plugin which versions it speaks. Raises PluginError for one that does not speak the list's."""
        for kind in dict.fromkeys(plugin["type"] for plugin in self.network.plugins):
            supported = self._versions(kind)
            if self.network.version not in supported:
                raise PluginError(
                    f"plugin {kind} speaks CNI {', '.join(supported) or 'in no version'}, and the list is of version "
                    f"{self.network.version}",
                    plugin=kind,
                    command="VERSION",
                    hint="set cniVersion to one that every plugin of the list speaks",
                )

    def _versions(self, kind: str) -> list[str]:
        # Plugins of before VERSION insist on the other variables (pkg/invoke, GetVersionInfo).
        environment = {"CNI_COMMAND": "VERSION", "CNI_NETNS": "dummy", "CNI_IFNAME": "dummy", "CNI_PATH": "dummy"}
        call = Call(kind, "VERSION", environment, json.dumps({"cniVersion": VERSIONS[-1]}).encode())
        answer = self._execute(call)
        error = error_of(answer.stdout)
        if answer.code and error is not None and "unknown CNI_COMMAND" in error[1]:
            return [UNVERSIONED]
        data = self._decoded(call, answer)
        supported = data.get("supportedVersions") if isinstance(data, dict) else None
        if not isinstance(supported, list) or not all(isinstance(item, str) for item in supported):
            raise _failure(call, f"printed no supportedVersions: {_shown(answer.stdout)}")
        return supported

    def add(self, container: Container) -> tuple[dict[str, Any], Result]:
        """Attach the container: the last plugin's result, as printed and as understood.

        Raises PluginError once all plugins were told to DEL again.
        """
        result: dict[str, Any] | None = None
        parsed = Result(self.network.version)
        try:
            for plugin in self.network.plugins:
                result, parsed = self._add(plugin, container, result)
        except PluginError as error:
            try:
                self.delete(container, None)
            except PluginError as second:
                error.message += f"; and when it was undone, {second.message}"
                error.args = (error.message,)
            raise
        assert result is not None, "a list has plugins"
        return result, parsed

    def _add(
        self, plugin: Plugin, container: Container, previous: dict[str, Any] | None
    ) -> tuple[dict[str, Any], Result]:
        call = self._call("ADD", plugin, container, previous)
        data = self._decoded(call, self._execute(call))
        if error_of(json.dumps(data).encode()) is not None:
            raise _failure(
                call, f"printed an error, but ended with status 0, so that a runtime takes it for done: {data['msg']}"
            )
        try:
            parsed = parse_result(data)
        except ValueError as error:
            raise _failure(call, f"printed a result that is wrong: {error}") from None
        if parsed.version != self.network.version:
            self._remark(
                call.plugin,
                "ADD",
                f"its result is of version {parsed.version}, it was asked for {self.network.version}",
            )
        return data, parsed

    def delete(self, container: Container, cached: dict[str, Any] | None) -> None:
        """Detach the container. Raises PluginError at the first plugin that fails: a runtime stops there too."""
        told = cached if at_least(self.network.version, PREVIOUS_SINCE) else None
        backwards = list(reversed(self.network.plugins))
        for number, plugin in enumerate(backwards):
            call = self._call("DEL", plugin, container, told)
            try:
                self._judge(call, self._execute(call))
            except PluginError as error:
                if rest := [other["type"] for other in backwards[number + 1 :]]:
                    error.message += f" (DEL ends here, as with a container runtime: not called: {', '.join(rest)})"
                    error.args = (error.message,)
                raise

    def check(self, container: Container, cached: dict[str, Any] | None) -> list[PluginError]:
        """Ask every plugin whether all is as it left it; what they find. Nothing where the list disables it.

        Raises UserError for a list of before CHECK. A runtime stops at the first complaint; here all are heard.
        """
        if not at_least(self.network.version, CHECK_SINCE):
            raise UserError(
                f"network {self.network.name} is of CNI {self.network.version}: CHECK came with {CHECK_SINCE}",
                hint="set cniVersion higher",
            )
        if self.network.disable_check:
            return []
        calls = (self._call("CHECK", plugin, container, cached) for plugin in self.network.plugins)
        return list(self._complaints(calls))

    def status(self) -> list[PluginError]:
        """Ask every plugin whether it can serve ADD; what they say. Nothing to ask before version 1.1.0."""
        if not self.knows_status:
            return []
        return list(self._complaints(self._call("STATUS", plugin) for plugin in self.network.plugins))

    def collect_garbage(self, valid: Sequence[tuple[str, str]]) -> list[PluginError]:
        """Tell every plugin which (container, device) pairs exist; failures. Nothing to tell before version 1.1.0."""
        if self.network.disable_gc or not self.knows_status:
            return []
        pairs = [{"containerID": container, "ifname": device} for container, device in valid]
        # The specification's first text had the other name (containernetworking/cni #1101).
        more = {"cni.dev/valid-attachments": pairs, "cni.dev/attachments": pairs}
        return list(self._complaints(self._call("GC", {**plugin, **more}) for plugin in self.network.plugins))

    def _complaints(self, calls: Iterator[Call]) -> Iterator[PluginError]:
        for call in calls:
            try:
                self._judge(call, self._execute(call))
            except PluginError as error:
                yield error

    def _call(
        self,
        command: str,
        plugin: Plugin,
        container: Container | None = None,
        previous: dict[str, Any] | None = None,
    ) -> Call:
        config = {**plugin, "name": self.network.name, "cniVersion": self.network.version}
        environment = {"CNI_COMMAND": command, "CNI_PATH": self._path}
        if previous is not None:
            config["prevResult"] = previous
        if container is not None:
            declared = [name for name, there in plugin.get("capabilities", {}).items() if there]
            offered = {name: container.capabilities[name] for name in declared if name in container.capabilities}
            if offered:
                config["runtimeConfig"] = offered
            environment |= {
                "CNI_CONTAINERID": container.id,
                "CNI_NETNS": container.netns,
                "CNI_IFNAME": container.device,
                "CNI_ARGS": ";".join(f"{name}={value}" for name, value in container.args),
            }
        return Call(plugin["type"], command, environment, json.dumps(config).encode())

    def _judge(self, call: Call, answer: Answer) -> None:
        """Whether the plugin ended well; what it did beside that is remarked. Raises PluginError."""
        for text in answer.remarks:
            self._remark(call.plugin, call.command, text)
        if answer.killed:
            raise _failure(call, f"{answer.killed} and was killed{_last_words(answer)}")
        if answer.code < 0:
            raise _failure(call, f"was killed by {_signal(-answer.code)}{_last_words(answer)}")
        if answer.code:
            error = error_of(answer.stdout)
            if error is None:
                raise _failure(
                    call, f"ended with status {answer.code}, without a CNI error on its output{_last_words(answer)}"
                )
            raise _failure(call, f"failed with code {code_in_words(error[0])}: {error[1]}")

    def _decoded(self, call: Call, answer: Answer) -> Any:
        self._judge(call, answer)
        if not answer.stdout.strip():
            raise _failure(call, f"ended well, but printed no result{_last_words(answer)}")
        try:
            return json.loads(answer.stdout)
        except ValueError:
            raise _failure(call, f"printed what is no JSON: {_shown(answer.stdout)}") from None


def _failure(call: Call, reason: str) -> PluginError:
    return PluginError(f"plugin {call.plugin}, {call.command}: {reason}", plugin=call.plugin, command=call.command)


def _last_words(answer: Answer) -> str:
    """The line of standard error that tells most: where Go panics it is followed by stack traces."""
    lines = [line.strip() for line in answer.stderr.splitlines() if line.strip()]
    if not lines:
        return ""
    told = next((line for line in lines if line.startswith(("panic:", "fatal error:"))), lines[-1])
    return f"; its last words: {told[:200]}"


def _shown(output: bytes) -> str:
    text = output[:_SHOWN].decode(errors="replace")
    return repr(text) + ("..." if len(output) > _SHOWN else "")


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
