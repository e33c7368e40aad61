"""Which part an image is of, as a function of the image alone, and the record of which images a run was trained on.

An image has a key, 64 bits that say which image it is whatever lies beside it: of a file its path below the root, of a
WebDataset the split, the name of the sample and its size, of Parquet its content. A hash of key and seed is a number in
[0, 1), and the part is the one whose share of [0, 1) it falls into. So adding or removing an image moves no other.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from selfsup.errors import UserError, from_json
from selfsup.random import fold_in, uniform
from selfsup.writing import replacing

FILE = "membership.npz"
#: The parts an image can be of, as bits. ``EARLIER``: training has read it before the run was resumed on other images.
PRETRAIN, TRAIN, HOLDOUT, TEST, EARLIER = 1, 2, 4, 8, 16
TRAINED = PRETRAIN | EARLIER
ABOUT = ("source", "roots", "rule", "keyless", "whole")
PARTS = {"pretrain": PRETRAIN, "train": TRAIN, "holdout": HOLDOUT, "test": TEST}


def name_keys(names: Iterable[str], sizes: Iterable[int] | None = None) -> Tensor:
    """Return the keys int64 ``[N]`` of images that have names of their own, with ``/`` between folders.

    Names are brought to Unicode's composed form (NFC): a Mac and a Linux machine write the same umlaut otherwise.

    Args:
        names: Paths below the root, or names of samples.
        sizes: Bytes of each image, where its name may be that of another one; they become part of the key.
    """
    texts = (unicodedata.normalize("NFC", name).encode("utf-8", "surrogateescape") for name in names)
    if sizes is not None:
        texts = (text + f"\0{size}".encode() for text, size in zip(texts, sizes, strict=True))
    return as_keys([content_key(text) for text in texts])


def content_key(content: bytes) -> bytes:
    """Return the key of an image that is known by its content, as eight bytes for ``as_keys``."""
    return hashlib.blake2b(content, digest_size=8).digest()


def as_keys(hashes: Sequence[bytes]) -> Tensor:
    """Return hashes of eight bytes as int64 ``[N]``."""
    return torch.from_numpy(np.frombuffer(b"".join(hashes), "<i8").astype(np.int64))


def draw(keys: Tensor, seed: int) -> Tensor:
    """Return the number of each image, float64 ``[N]`` in [0, 1): a function of its key and the seed."""
    return uniform(fold_in(seed, 0), keys, 1)[:, 0]


def draw_for_test(keys: Tensor) -> Tensor:
    """Return the number of each image that decides whether it is set aside for testing."""
    # A fixed seed: what is tested must not change with a setting of the training images. Of no subset_seed's either:
    # if it were the hold-out's, no image that is left for training would fall into that
    return draw(keys, fold_in(0, -1))


@dataclass(frozen=True)
class Membership:
    """Of which parts each image of a source is.

    Attributes:
        source: The source, as registered.
        roots: Its folders; none for a source that has none of its own.
        rule: ``image`` or ``position``: how the parts were drawn.
        keys: int64 ``[N]``, in the order of the source, training images before test images.
        parts: uint8 ``[N]``, the sum of the parts an image is of (``PRETRAIN`` and so on); 0 beyond ``data.limit``.
            Images that are gone but were trained on stand at the end.
        keyless: Whether images are known by their place alone, as the source's content is fixed.
        whole: False where the run had begun before this was recorded, perhaps on other images.
    """

    source: str
    roots: Sequence[str]
    rule: str
    keys: Tensor
    parts: Tensor
    keyless: bool = False
    whole: bool = True

    @property
    def digest(self) -> str:
        """What identifies these parts: their images, and the place of each, by which its views are drawn."""
        parts = self.parts.numpy() & ~np.uint8(EARLIER)
        places = np.flatnonzero(parts)
        content = (self.source.encode(), places.astype("<i8"), self.keys.numpy()[places].astype("<i8"), parts[places])
        return hashlib.sha256(b"\0".join(map(bytes, content))).hexdigest()[:32]

    def of(self, part: int) -> Tensor:
        """Return the keys of a part, in its order."""
        return self.keys[(self.parts & part) > 0]

    def summary(self) -> dict[str, str | int]:
        """Return digest, rule and the number of images in each part, for ``environment.json`` and checkpoints."""
        counts = {name: int(((self.parts & part) > 0).sum()) for name, part in PARTS.items()}
        return {"digest": self.digest, "rule": self.rule, **counts}

    def after(self, before: Membership) -> Membership:
        """Return this membership with the images marked that training has read under the one ``before``."""
        read = before.of(TRAINED)
        parts = self.parts | (torch.isin(self.keys, read) * EARLIER).to(torch.uint8)
        gone = read[~torch.isin(read, self.keys)]
        more = torch.full((len(gone),), EARLIER, dtype=torch.uint8)
        return replace(
            self, keys=torch.cat([self.keys, gone]), parts=torch.cat([parts, more]), whole=self.whole and before.whole
        )

    def save(self, run_dir: Path) -> None:
        """Write ``membership.npz`` to a run folder; it replaces an older one in one step."""
        about = json.dumps({name: getattr(self, name) for name in ABOUT})
        with replacing(run_dir / FILE) as draft, draft.open("wb") as file:
            np.savez_compressed(file, keys=self.keys.numpy(), parts=self.parts.numpy(), about=np.array(about))


def read_membership(run_dir: Path) -> Membership | None:
    """Return the membership that a run folder keeps; None where it has none, as before it was recorded.

    Raises:
        UserError: The file is damaged.
    """
    path = run_dir / FILE
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as kept:
            about = from_json(str(kept["about"]))
            return Membership(**about, keys=torch.from_numpy(kept["keys"]), parts=torch.from_numpy(kept["parts"]))
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} is damaged, so which images the run was trained on is unknown; restore it, or delete it to go on "
            "without that knowledge."
        ) from error
