"""Work that makes very many objects, all of which stay.

The cyclic garbage collector looks at young objects again and again while they are being made, and with ten thousand
Services that takes as long as making them. Nothing that the work leaves behind is in a cycle, so it loses nothing by
resting meanwhile.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_collection() -> Iterator[None]:
    """Let the collector rest until the block is done. Blocks may nest, and run in several threads: whoever has stopped
    it starts it again."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()
