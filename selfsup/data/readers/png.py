"""PNG of 16 bits, of which Pillow reads colour with 8. Grey and colour keep theirs; transparency is laid over white."""

from __future__ import annotations

import numpy as np
import torch

from selfsup.data.form import Kind
from selfsup.data.reader import Reader, Values, add, check_pixels

MAGIC = b"\x89PNG\r\n\x1a\n"
WHITE = 65535


@add
class Png16(Reader):
    """PNG files whose header says 16 bits."""

    name = "png"
    endings = frozenset({".png"})

    def takes(self, head: bytes) -> bool:
        return head.startswith(MAGIC) and head[24:25] == b"\x10"

    def kind(self, content: bytes, channel_axis: str | None) -> Kind:
        return Kind(3 if content[25] & 2 else 1, "uint16", shape=_shape(content))

    def read(self, content: bytes, channel_axis: str | None, max_pixels: int) -> Values:
        from torchvision.io import ImageReadMode, decode_png

        check_pixels(*_shape(content), max_pixels)
        buffer = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        array = decode_png(buffer, mode=ImageReadMode.UNCHANGED).numpy()
        if len(array) in (2, 4):  # the last one is how opaque a pixel is
            opaque = array[-1:].astype(np.float64) / WHITE
            array = (array[:-1] * opaque + WHITE * (1 - opaque)).round().astype(np.uint16)
        return Values(array)


def _shape(content: bytes) -> tuple[int, int]:
    return int.from_bytes(content[20:24]), int.from_bytes(content[16:20])
