"""Evaluation of a checkpoint: which network, which data, where the results go."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pytorch_lightning as pl
import torch

from selfsup.checkpoint import INFO, find_checkpoint, load_backbone, read_checkpoint, run_of
from selfsup.config import EvaluateConfig, from_values, load_config
from selfsup.data import load_splits
from selfsup.errors import UserError
from selfsup.eval import PROTOCOLS, evaluate_all
from selfsup.eval.results import Record
from selfsup.nn import build_backbone

#: Words that ``checkpoint`` takes in place of a path: what learned features are compared with.
BASELINES = ("raw_pixels", "untrained")


def load_evaluate_config(overrides: Sequence[str]) -> EvaluateConfig:
    """Compose the configuration of an evaluation; data and network are those of the checkpoint unless named.

    Raises:
        UserError: As ``load_config``, or ``checkpoint`` is missing or cannot be read.
    """
    given = dict(o.split("=", 1) for o in overrides if "=" in o)
    checkpoint = given.get("checkpoint")
    if checkpoint is None:
        raise UserError(
            f"Say what to evaluate: checkpoint=RUN, a .ckpt file, or one of {', '.join(BASELINES)} (with data=…)."
        )
    if checkpoint in BASELINES or "data" in given:
        return cast(EvaluateConfig, load_config(overrides, kind="evaluate"))
    saved = read_checkpoint(checkpoint)[INFO]["config"]
    values = {"data": saved["data"], "backbone": saved["backbone"]}
    return cast(EvaluateConfig, from_values(values, overrides, kind="evaluate"))


def evaluate(config: EvaluateConfig, protocols: Sequence[str] = PROTOCOLS, progress: bool = True) -> list[Record]:
    """Evaluate a checkpoint, add the records to its run's ``results.json`` and return them.

    Args:
        config: What to evaluate, on which data; see :func:`load_evaluate_config`.
        protocols: Some of ``selfsup.eval.PROTOCOLS``.
        progress: Show progress bars.

    Raises:
        UserError: A checkpoint, data or setting that is not as it must be.
    """
    splits = load_splits(config.data)
    run_dir = None if config.run_dir is None else Path(config.run_dir)
    epoch: int | None = None
    if config.checkpoint == "raw_pixels":
        backbone = None
    elif config.checkpoint == "untrained":
        pl.seed_everything(config.seed, verbose=False)
        backbone = build_backbone(config.backbone, splits.train.channels, splits.train.normalization)
        epoch = 0
    else:
        backbone = load_backbone(config.checkpoint)
        epoch = int(read_checkpoint(config.checkpoint)[INFO]["epochs_done"])
        run_dir = run_dir or run_of(find_checkpoint(config.checkpoint))
    return evaluate_all(
        backbone,
        splits,
        config.eval,
        protocols=protocols,
        run_dir=run_dir,
        epoch=epoch,
        seed=config.seed,
        workers=config.data.workers,
        device=_device(config.accelerator),
        progress=progress,
    )


def _device(accelerator: str) -> torch.device:
    known = {"auto": "cuda" if torch.cuda.is_available() else "cpu", "cpu": "cpu", "gpu": "cuda"}
    if accelerator not in known:
        raise UserError(f"accelerator: there is no '{accelerator}'; use one of {', '.join(known)}.")
    if known[accelerator] == "cuda" and not torch.cuda.is_available():
        raise UserError("accelerator: there is no GPU on this machine; use accelerator=cpu.")
    return torch.device(known[accelerator])
