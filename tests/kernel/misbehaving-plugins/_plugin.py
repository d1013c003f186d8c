"""What the misbehaving plugins have in common: they behave but for one thing. They stand behind another plugin in a
chain, and hand its result on."""

import json
import os
import sys
from typing import Any

VERSIONS = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"]
command = os.environ["CNI_COMMAND"]


def begin() -> dict[str, Any]:
    """The configuration. VERSION is answered here."""
    config: dict[str, Any] = json.load(sys.stdin)
    if command == "VERSION":
        json.dump({"cniVersion": "1.1.0", "supportedVersions": VERSIONS}, sys.stdout)
        sys.exit(0)
    return config


def hand_on(config: dict[str, Any]) -> None:
    """Print the result of the plugin before."""
    json.dump(config["prevResult"], sys.stdout)
    sys.stdout.flush()
