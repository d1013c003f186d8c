"""Text from files, made safe to show: what a terminal or a reader's eye would obey becomes visible."""

from __future__ import annotations

import re

# C0 and C1 controls (an ESC colours, moves or clears a terminal) and the marks that turn the direction of writing,
# which make one name look like another (Unicode TR 36, section 2.5).
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")


def visible(text: str) -> str:
    """The text with control and direction characters written as ``\\x1b`` or ``\\u202e``; line breaks too."""
    return _UNSEEN.sub(lambda match: _escaped(ord(match.group())), text)


def _escaped(code: int) -> str:
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
