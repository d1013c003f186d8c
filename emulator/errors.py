"""Every error that cnilab raises on purpose, as one tree.

::

    CnilabError                    exit 3   something of ours went wrong
    ├── UserError                  exit 2   the request cannot be honoured as given
    │   ├── InputError             a file, with the place in it that is wrong
    │   │   ├── TopologyError
    │   │   ├── ManifestError
    │   │   └── ScenarioError
    │   ├── NotFound               no such lab, pod, node, scenario, ...
    │   ├── AlreadyExists          a lab or an object of that name is there
    │   ├── Unsupported            this kernel, or this user, cannot do it
    │   ├── AddressesExhausted     a pod range has no free address left
    │   └── PluginError            a CNI plugin of the user's failed
    ├── ApplyError                 the kernel refused an object of the plan
    ├── SandboxError               the lab's namespaces could not be made, or are gone
    ├── DaemonError                a supervised process died
    └── CheckFailed                exit 1   an expectation of the user's does not hold

``message`` says what could not be done, on which object, and why; ``hint`` says what to do about it.
Only ``--debug`` shows a traceback.
"""

from __future__ import annotations

from dataclasses import dataclass


class CnilabError(Exception):
    """The root of the tree. ``str(error)`` is the message, without the hint."""

    exit_code = 3

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UserError(CnilabError):
    """What was asked for cannot be honoured as given."""

    exit_code = 2


@dataclass(frozen=True)
class Problem:
    """One fault in one input: where it is, and what is wrong there.

    ``source`` is a file name (``<stdin>`` for standard input), ``subject`` the object in it
    (``Deployment default/web``, ``node n1``), ``path`` the field (``spec.containers[0].image``);
    the last two may be empty.
    """

    source: str
    subject: str
    path: str
    reason: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.source, self.subject, self.path, self.reason) if part)


class InputError(UserError):
    """One or more faults in files that the user gave. Nothing of them was applied."""

    def __init__(self, problems: list[Problem] | tuple[Problem, ...], *, hint: str = "") -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems), hint=hint)


class TopologyError(InputError):
    """A topology file is wrong."""


class ManifestError(InputError):
    """A Kubernetes manifest is wrong, by the rules of the API server."""


class ScenarioError(InputError):
    """A scenario file is wrong."""


class NotFound(UserError):
    """There is no object of that name."""


class AlreadyExists(UserError):
    """An object of that name is there already."""


class Unsupported(UserError):
    """This kernel or this user cannot do it. ``features`` names what is missing."""

    def __init__(self, message: str, *, hint: str = "", features: tuple[str, ...] = ()) -> None:
        super().__init__(message, hint=hint)
        self.features = features


class AddressesExhausted(UserError):
    """A range of pod addresses is full."""


class PluginError(UserError):
    """A CNI plugin of the user's failed, or did what no plugin may do: ``plugin`` is its type, ``command`` the verb."""

    def __init__(self, message: str, *, plugin: str = "", command: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.plugin = plugin
        self.command = command


class ApplyError(CnilabError):
    """The kernel refused an object of the plan. ``subject`` describes that object."""

    def __init__(self, message: str, *, subject: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.subject = subject


class SandboxError(CnilabError):
    """The lab's private namespaces could not be made, or are gone."""


class DaemonError(CnilabError):
    """A supervised daemon died or never became ready. ``log`` holds its last lines."""

    def __init__(self, message: str, *, log: tuple[str, ...] = (), hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.log = log


class CheckFailed(CnilabError):
    """An expectation of the user's does not hold."""

    exit_code = 1
