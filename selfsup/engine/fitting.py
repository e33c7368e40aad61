"""What a training says that does not fit into memory: which of its settings take less, and what is still there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from selfsup.config import TrainConfig
from selfsup.registry import methods
from selfsup.shortage import ShortageError, lacks_memory, sentence
from selfsup.wording import command


@contextlib.contextmanager
def fitting(config: TrainConfig, run_dir: Path) -> Iterator[None]:
    """Train inside.

    Raises:
        ShortageError: There is too little memory. The last checkpoint, if there is one, is as it was.
    """
    try:
        yield
    except Exception as error:
        if not lacks_memory(error):
            raise
        if isinstance(error, ShortageError):  # what was done besides training has named its settings
            raise ShortageError(f"{str(error).removesuffix('.')}; {_left(run_dir)}.") from error
        raise ShortageError(sentence("the training", error, takes_less(config), _left(run_dir))) from error


def takes_less(config: TrainConfig) -> str:
    """Return what a training would need less memory with."""
    trainer, batch = config.trainer, config.batch_size
    same = [] if trainer.activation_checkpointing else ["trainer.activation_checkpointing=true"]
    chunk = trainer.chunk_size or 2 * batch
    if chunk > 1 and methods[config.method.name].target.chunkable:
        same.append(f"trainer.chunk_size={max(1, chunk // 4)}")
    fewer = "" if config.data.workers == 0 else ", or fewer data.workers"
    keep = f", or keep both and set {' or '.join(same)}" if same else ""
    return f"lower batch_size ({batch}) or data.image_size ({config.data.image_size}){keep}{fewer}"


def _left(run_dir: Path) -> str:
    last = run_dir / "checkpoints" / "last.ckpt"
    if not last.exists():
        return "nothing is saved yet, so start again with another run_dir, or with resume=auto"
    again = command("train", f"resume={run_dir}")
    return f"{last} is unharmed, and {again} goes on from it, but with the batch and the images that it had"
