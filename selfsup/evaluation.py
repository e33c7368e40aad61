"""Evaluation of a checkpoint: which network, which data, where the results go."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytorch_lightning as pl
import torch
from torch import nn

from selfsup.checkpoint import INFO, find_checkpoint, load_backbone, read_checkpoint, run_of
from selfsup.config import EvaluateConfig, from_values, load_config
from selfsup.data import load_splits
from selfsup.data.base import ImageDataset, Splits
from selfsup.data.resident import ResidentDataset
from selfsup.data.workers import worker_count
from selfsup.engine.training import build_method
from selfsup.errors import UserError
from selfsup.eval import PROTOCOLS, Audit, CkaTable, audit_dataset, cka, evaluate_all, extract_splits, pixel_splits
from selfsup.eval.results import Record
from selfsup.external import is_external, load_external, names_its_network
from selfsup.nn import build_backbone
from selfsup.types import ImageFacts, Normalization

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
            f"Say what to evaluate: checkpoint=RUN, a .ckpt file, timm:NAME, module:FILE.py:NAME, a file of weights "
            f"(with backbone=…), or one of {', '.join(BASELINES)} (each with data=…)."
        )
    external = checkpoint not in BASELINES and is_external(checkpoint)
    if external and not names_its_network(checkpoint) and not {"backbone", "backbone.name"} & given.keys():
        raise UserError(f"{checkpoint} is no checkpoint of selfsup; say which network its weights are of: backbone=….")
    if external or checkpoint in BASELINES or "data" in given:
        return cast(EvaluateConfig, load_config(overrides, kind="evaluate"))
    saved = read_checkpoint(checkpoint)[INFO]["config"]
    values = {"data": saved["data"], "backbone": saved["backbone"]}
    return cast(EvaluateConfig, from_values(values, overrides, kind="evaluate"))


def evaluate(config: EvaluateConfig, protocols: Sequence[str] | None = None, progress: bool = True) -> list[Record]:
    """Evaluate a checkpoint, add the records to its run's ``results.json`` and return them.

    Args:
        config: What to evaluate, on which data; see :func:`load_evaluate_config`.
        protocols: Some of ``selfsup.eval.PROTOCOLS``; None is all that the data allows.
        progress: Show progress bars.

    Raises:
        UserError: A checkpoint, data or setting that is not as it must be.
    """
    splits = load_splits(config.data)
    run_dir = None if config.run_dir is None else Path(config.run_dir)
    backbone, epoch, facts = open_backbone(config, splits.train)
    trained_here = epoch is not None and config.checkpoint not in BASELINES
    if run_dir is None and trained_here:
        run_dir = run_of(find_checkpoint(config.checkpoint))
    return evaluate_all(
        backbone,
        splits,
        config.eval,
        protocols=protocols,
        run_dir=run_dir,
        epoch=epoch,
        facts=facts,
        head=load_head(config.checkpoint) if trained_here and "layers" in (protocols or PROTOCOLS) else None,
        seed=config.seed,
        workers=worker_count(config.data),
        device=choose_device(config.accelerator),
        progress=progress,
    )


def open_backbone(config: EvaluateConfig, images: ImageDataset) -> tuple[nn.Module | None, int | None, Record]:
    """Return the network that ``config.checkpoint`` names, on the CPU, and what is known of it.

    Args:
        config: ``checkpoint``, ``backbone``, ``pretrained`` and ``seed``, which draws random weights.
        images: What it will see: their channels and statistics are those of an untrained network.

    Returns:
        The network (None for raw pixels), the epochs it was trained for here (None when it was not), and what records
        say of a network from elsewhere: where its weights come from and how its images are normalised.

    Raises:
        UserError: As ``load_backbone`` and ``load_external``.
    """
    if config.checkpoint == "raw_pixels":
        return None, None, {}
    if config.checkpoint == "untrained":
        pl.seed_everything(config.seed, verbose=False)
        return build_backbone(config.backbone, images.channels, images.normalization), 0, {}
    if not is_external(config.checkpoint):
        return load_backbone(config.checkpoint), int(read_checkpoint(config.checkpoint)[INFO]["epochs_done"]), {}
    pl.seed_everything(config.seed, verbose=False)
    network = load_external(
        config.checkpoint, config.backbone, pretrained=config.pretrained, image_size=images.image_size
    )
    statistics = getattr(network, "normalization", None) or images.normalization
    facts: Record = {"checkpoint": config.checkpoint, "mean": list(statistics.mean), "std": list(statistics.std)}
    if config.checkpoint.startswith("timm:"):
        facts["pretrained"] = config.pretrained
    return network, None, facts


def find_neighbours(config: EvaluateConfig, progress: bool = True) -> tuple[Audit, Path, Path]:
    """Look for near-duplicates and probable label errors over all parts of a source, the test images included.

    ``neighbours.csv`` and ``contact_sheet.png`` go to the folder ``neighbours`` of ``run_dir``, of the checkpoint's own
    run, or of ``runs`` where there is neither.

    Args:
        config: Whose features, of which images; of ``eval`` the first of ``knn_k`` and ``temperatures``,
            ``duplicate_similarity`` and how neighbours are searched.
        progress: Show progress bars.

    Returns:
        What was found, the table and the contact sheet.

    Raises:
        UserError: As :func:`evaluate` and ``selfsup.eval.audit``.
    """
    settings = config.eval
    if not settings.knn_k or not settings.temperatures:
        raise UserError("eval.knn_k and eval.temperatures: give at least one of each; neighbours takes the first.")
    # Read from their files, which the findings name; images in memory have forgotten them
    splits = load_splits(replace(config.data, resident_limit_mb=0))
    backbone, epoch, _ = open_backbone(config, splits.train)
    run_dir = Path("runs") if config.run_dir is None else Path(config.run_dir)
    if config.run_dir is None and epoch is not None and config.checkpoint not in BASELINES:
        run_dir = run_of(find_checkpoint(config.checkpoint))
    folder = run_dir / "neighbours"
    if backbone is None:
        found = pixel_splits(splits, workers=worker_count(config.data))
    else:
        found = extract_splits(
            backbone,
            splits,
            batch_size=settings.batch_size,
            workers=worker_count(config.data),
            device=choose_device(config.accelerator),
            cache_dir=folder / "features" if settings.cache else None,
            progress=progress,
        )
    parts = ((found.train, splits.train), (found.holdout, splits.holdout), (found.test, splits.test))
    return audit_dataset(
        [(features, images) for features, images in parts if features is not None and images is not None],
        folder,
        k=settings.knn_k[0],
        temperature=settings.temperatures[0],
        duplicate_similarity=settings.duplicate_similarity,
        index=settings.index,
        effort=settings.index_effort,
        memory_mb=settings.search_memory_mb,
        progress=progress,
    )


def compare_networks(
    runs: Sequence[str], overrides: Sequence[str] = (), *, layers: bool = False, progress: bool = True
) -> CkaTable:
    """Return the linear CKA of networks on the same images, the first one's training images.

    Args:
        runs: What ``checkpoint`` takes, at least two; raw pixels are no network. ``untrained`` has the architecture of
            the first.
        overrides: Settings of the evaluation, such as ``data=…``, which networks from elsewhere need.
        layers: Compare every stage of every network.
        progress: Show progress bars.

    Raises:
        UserError: As :func:`load_evaluate_config` and ``selfsup.eval.cka``, or a run is named twice.
    """
    if len(runs) < 2 or len(set(runs)) < len(runs):
        raise UserError("cka: name at least two runs, each once.")
    first = load_evaluate_config([f"checkpoint={runs[0]}", *overrides])
    images = load_splits(first.data).train
    networks: dict[str, nn.Module] = {}
    for run in runs:
        network = open_backbone(replace(first, checkpoint=run), images)[0]
        if network is None:
            raise UserError(f"cka: {run} is no network; name runs, checkpoints or networks by name.")
        networks[run] = network
    return cka(
        networks,
        images,
        layers=layers,
        batch_size=first.eval.batch_size,
        workers=worker_count(first.data),
        device=choose_device(first.accelerator),
        progress=progress,
    )


def load_head(path: str | Path) -> nn.Module | None:
    """Return the projection head that a checkpoint's method trained, in evaluation mode on the CPU.

    None, with a warning, where the method has no ``head`` or is not known here, such as one from a user's file.

    Raises:
        UserError: As ``read_checkpoint``.
    """
    content = read_checkpoint(path)
    info = content[INFO]
    images = ResidentDataset(
        torch.zeros(1, info["in_channels"], 2, 2, dtype=torch.uint8),
        torch.zeros(1, dtype=torch.int64),
        ImageFacts("none", "train", info["in_channels"], 2, Normalization(tuple(info["mean"]), tuple(info["std"]))),
    )
    try:
        with torch.random.fork_rng([]):
            method = build_method(from_values(info["config"]), Splits(images, images, images, None))
        head = method.head
        if not isinstance(head, nn.Module):
            raise UserError(f"{type(method).__name__} has no head.")
        state = {k.removeprefix("head."): v for k, v in content["state_dict"].items() if k.startswith("head.")}
        head.load_state_dict(state)
    except (UserError, AttributeError, RuntimeError) as error:
        warnings.warn(f"The layers of the head are left out, as it cannot be built again: {error}", stacklevel=2)
        return None
    return head.eval()


def choose_device(accelerator: str) -> torch.device:
    """Return the device of the setting ``accelerator``.

    Raises:
        UserError: There is no such device.
    """
    known = {"auto": "cuda" if torch.cuda.is_available() else "cpu", "cpu": "cpu", "gpu": "cuda"}
    if accelerator not in known:
        raise UserError(f"accelerator: there is no '{accelerator}'; use one of {', '.join(known)}.")
    if known[accelerator] == "cuda" and not torch.cuda.is_available():
        raise UserError("accelerator: there is no GPU on this machine; use accelerator=cpu.")
    return torch.device(known[accelerator])
