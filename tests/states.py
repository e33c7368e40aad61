"""Whether two runs ended in the same state, to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from selfsup.checkpoint import read_checkpoint

NOT_STATE = ("callbacks", "selfsup", "loops")  # seconds, settings (another run_dir), and Lightning's own bookkeeping


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    """Return the paths at which two nested states differ; tensors must be equal to the bit."""
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        same = isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
        return [] if same else [path]
    if isinstance(a, dict) and isinstance(b, dict):
        found = [f"{path}.{k} in one only" for k in a.keys() ^ b.keys()]
        return found + [d for k in a.keys() & b.keys() for d in differences(a[k], b[k], f"{path}.{k}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        return [d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in differences(x, y, f"{path}[{i}]")]
    return [] if a == b else [path]


def assert_same_state(one: Path, other: Path) -> None:
    a, b = (read_checkpoint(run) for run in (one, other))
    for key in NOT_STATE:
        a.pop(key), b.pop(key)
    assert a["optimizer_states"][0]["state"], "the optimiser has state to compare"
    assert differences(a, b) == []
