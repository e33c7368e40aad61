"""How many bits a value has in files that Pillow reads with 8, whatever they hold."""

from __future__ import annotations

import re

HEAD = 2**16  # bytes of a file that are enough to see it

_CODESTREAM = b"\xff\x4f\xff\x51"  # of JPEG 2000: where it starts, and its sizes
_SIZES = 40  # bytes from there to the number of channels, of which each has three bytes behind it


def bits_of(head: bytes) -> int:
    """Return the bits of the deepest channel that the head of a file says: of PPM, JPEG 2000, HEIF, AVIF and SGI.

    8 where it does not say it, and of all other types.
    """
    if head[:2] in (b"P3", b"P6"):
        words = re.sub(rb"#[^\n]*\n", b" ", head[:1024]).split(maxsplit=4)
        return 16 if len(words) > 3 and words[3].isdigit() and int(words[3]) > 255 else 8
    if head[:2] == b"\x01\xda":
        return 8 * head[3]
    if head[4:8] == b"ftyp":  # a list of channels and their bits for each of its pictures, transparency among them
        lists = [head[p.end() + 1 :][: head[p.end()]] for p in re.finditer(b"pixi....", head[:-1], re.DOTALL)]
        return max((bits for channels in lists for bits in channels), default=8)
    start = head.find(_CODESTREAM) if head[:4] == _CODESTREAM or head[4:8] == b"jP  " else -1
    if start >= 0:
        channels = int.from_bytes(head[start + _SIZES : start + _SIZES + 2])
        depths = head[start + _SIZES + 2 : start + _SIZES + 2 + 3 * channels : 3]
        return max((1 + (depth & 0x7F) for depth in depths), default=8)
    return 8
