"""Evaluation of a checkpoint: which network, which data, where the results go."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from selfsup.config import EvaluateConfig, from_values, load_config
from selfsup.data import DataConfig, Splits, load_splits
from selfsup.data.base import ImageDataset
from selfsup.data.targets import has_targets
from selfsup.data.workers import worker_count
from selfsup.engine.start import START
from selfsup.engine.trained_images import SEEN, leave_out_trained, rule_of_run
from selfsup.errors import UserError, reason_of
from selfsup.eval import Encoder, Record, Subject, measure, read_results
from selfsup.eval.encoder import input_channels
from selfsup.eval.record import AT_START
from selfsup.eval.results import FILE
from selfsup.eval.runner import PartlyError, protocols_of
from selfsup.opened import Opened, open_network
from selfsup.report import Evaluated, draw_figures
from selfsup.settings.checkpoints import check_named, which_data
from selfsup.settings.moved import renamed
from selfsup.settings.overrides import read_change
from selfsup.shortage import lacks_memory
from selfsup.types import ImageFacts, as_size, height_width, size_words
from selfsup.writing import check_output


def load_evaluate_config(overrides: Sequence[str]) -> EvaluateConfig:
    """Compose the configuration of an evaluation; see :func:`open_evaluation`."""
    return open_evaluation(overrides)[0]


def open_evaluation(overrides: Sequence[str], opened: Opened | None = None) -> tuple[EvaluateConfig, Opened]:
    """Compose the configuration of an evaluation, and open its checkpoint, once.

    ``opened`` is the checkpoint where it is open already; an untrained network is made anew for other data.

    Data and network are those of the checkpoint unless they are named. So are, whatever the data, the size of the
    images and the statistics that they are normalised with; a network that states neither takes those of the data.

    Raises:
        UserError: As ``load_config`` and ``open_network``, or ``checkpoint`` or ``data`` is missing.
    """
    overrides = renamed(overrides)  # here, as each time it is done a note says so
    given = {change.key: change.value for change in map(read_change, overrides)}
    asked = "data" in given
    name = check_named(given.get("checkpoint"), asked)
    # without data= the settings of the data are those of the run's source, which is not known before it is opened
    own = [word for word in overrides if asked or not read_change(word).key.startswith("data.")]
    config = cast(EvaluateConfig, load_config(own, kind="evaluate"))
    choose_device(config.accelerator)
    if opened is None or opened.name == "untrained":
        opened = open_for(config, images_of(config), bool({"backbone", "backbone.name"} & given.keys()))
    if opened.config is not None and (settings := [key for key in given if key.split(".")[0] == "backbone"]):
        raise UserError(f"{settings[0]}: {name} says which network it is; leave the setting out.")
    if not asked:
        if opened.config is None:
            raise which_data(name)
        values = {"data": opened.config["data"], "backbone": opened.config["backbone"]}
        config = cast(EvaluateConfig, from_values(values, overrides, kind="evaluate"))
    elif opened.config is not None and "data.membership" not in given:
        config.data.membership = rule_of_run(opened.config, config.data)
    images = images_of(config)  # before the statistics are those of the network
    if opened.image_size is not None and "data.image_size" not in given:
        size = opened.image_size
        config.data.image_size = size if isinstance(size, int) else list(size)
    if opened.normalization is not None:
        for key in ("mean", "std"):
            if f"data.{key}" not in given:
                setattr(config.data, key, list(getattr(opened.normalization, key)))
    opened.normalize(config.data.mean, config.data.std)
    check_network(opened, replace(images, image_size=as_size(config.data.image_size)))
    return config, opened


def opened_evaluation(what: EvaluateConfig | Sequence[str]) -> tuple[EvaluateConfig, Opened]:
    """Return the configuration of an evaluation and its network, opened: of overrides, or of a configuration."""
    if not isinstance(what, EvaluateConfig):
        return open_evaluation(what)
    choose_device(what.accelerator)
    opened = open_for(what, images_of(what))
    opened.normalize(what.data.mean, what.data.std)
    check_network(opened, images_of(what))
    return what, opened


def images_of(config: EvaluateConfig) -> ImageFacts:
    return config.data.facts("train", len(config.data.mean))


def open_for(config: EvaluateConfig, images: ImageFacts, names_network: bool = True) -> Opened:
    backbone = config.backbone if names_network or config.checkpoint == "untrained" else None
    return open_network(config.checkpoint, backbone, images=images, pretrained=config.pretrained, seed=config.seed)


def check_network(opened: Opened, images: ImageFacts) -> None:
    """Run a network on black images like those it is to see, before any of these are read, and note its width.

    Raises:
        UserError: It does not take such images, or gives no pooled features.
    """
    if opened.network is None:
        opened.dim = images.channels * math.prod(height_width(images.image_size))
        return
    size, channels = images.image_size, input_channels(opened.network, images)
    if channels != images.channels and images.channels != 1:
        read = ", or read colour as grey, data.channels=1 with one value of data.mean and data.std" * (channels == 1)
        raise UserError(
            f"{opened.name} takes images of {channels} channel(s) and those of {images.name} have {images.channels}, "
            f"by the values of data.mean; choose other data, or a network that was trained on such images{read}."
        )
    kind = next((p.dtype for p in opened.network.parameters() if p.is_floating_point()), torch.float32)
    try:
        with torch.inference_mode():
            output = opened.network(torch.zeros(2, channels, *height_width(size), dtype=kind))
    except Exception as error:  # networks from elsewhere raise whatever they like
        if lacks_memory(error):
            raise
        own = opened.image_size
        advice = "a size that it takes" if own in (None, size) else str(own).replace("(", "[").replace(")", "]")
        raise UserError(
            f"{opened.name} does not take images of {channels} channel(s) and {size_words(size)} pixels "
            f"({reason_of(error)}); set data.image_size={advice}."
        ) from error
    if not isinstance(output, torch.Tensor) or output.ndim != 2:
        form = list(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise UserError(f"{opened.name} gives {form} where pooled features [B,D] are needed.")
    opened.dim = output.shape[1]


def announce(opened: Opened, images: ImageFacts) -> None:
    """Print on what a network is judged, and how the images are brought to it."""
    size = f"{size_words(images.image_size)} px" + (", its own size" if images.image_size == opened.image_size else "")
    statistics = opened.normalization or images.normalization
    mean, std = ([round(value, 4) for value in values] for values in (statistics.mean, statistics.std))
    scaled = "" if opened.network is None else f", mean {mean}, std {std}"
    print(f"{opened.name} on images of {images.name} ({size}{scaled})", flush=True)
    if "in_channels" in opened.facts:
        print(
            f"note: timm has {opened.name} for images of other channels; the weights of its first layer are repeated "
            f"and scaled for {opened.facts['in_channels']}.",
            flush=True,
        )


def evaluate(
    what: EvaluateConfig | Sequence[str], protocols: Sequence[str] | str | None = None, progress: bool = True
) -> list[Record]:
    """Evaluate a checkpoint, add the records to its run's ``results.json`` and return them.

    Args:
        what: Overrides, as :func:`open_evaluation` takes them, or a configuration that was made of them.
        protocols: Some of ``selfsup.eval.PROTOCOLS``; None is kNN, the linear probe and diagnostics, ``"all"`` all that
            the data allows but those that take longest.
        progress: Show progress bars.

    Raises:
        UserError: A checkpoint, data or setting that is not as it must be.
    """
    config, opened = opened_evaluation(what)
    return evaluate_opened(config, opened, protocols, progress)


def evaluate_opened(
    config: EvaluateConfig, opened: Opened, protocols: Sequence[str] | str | None = None, progress: bool = True
) -> list[Record]:
    """Evaluate a network that is open, as :func:`evaluate`, and the weights that its training started from.

    The records of these say ``at="start"`` and go to ``start/results.json`` in the folder of the others; what is
    there already is not measured again.
    """
    names = protocols_of(protocols)  # before anything is read, as a name may be wrong
    run_dir = results_folder(config, opened)
    if run_dir is not None:
        check_output(run_dir, "run_dir")
    if progress:
        announce(opened, images_of(config))
    splits = load_splits(config.data)
    if progress:
        announce_found(config.data, opened, splits)
    facts = record_facts(opened, splits.train) | start_marks(opened)
    if opened.run is not None and opened.config is not None:
        splits, left_out = leave_out_trained(splits, config.data, opened.run, opened.config, opened.membership)
        facts |= left_out
        if progress and "choices_on" in facts:
            print(f"note: there is no hold-out (data.holdout): choices are made on {SEEN}.", flush=True)
    splits = leave_out_unlabelled(splits)
    names = protocols_of(protocols, splits.train)
    if run_dir is not None and config.eval.cache and opened.network is not None:
        check_output(run_dir / "features", "run_dir", bytes_of_features(opened, splits))
    subject = Subject(
        build_encoder(config, opened.network, progress),
        splits,
        config.eval,
        head=opened.head() if "layers" in names else None,
        epoch=opened.epochs,
        seed=config.seed,
        cache_dir=run_dir / "features" if run_dir is not None and config.eval.cache else None,
    )
    short: PartlyError | None = None
    try:
        records = measure(subject, names, run_dir=run_dir, facts=facts)
    except PartlyError as error:
        records, short = error.records, error
    if run_dir is not None and config.eval.figures:
        draw_figures(Evaluated(records, subject.shown, splits.train.classes), run_dir / "figures")
    if opened.run is not None and not opened.at_start and (opened.run / START).is_dir():
        start = open_network(opened.run / START)
        start.normalize(config.data.mean, config.data.std)
        before = Subject(build_encoder(config, start.network, progress), splits, config.eval, epoch=0, seed=config.seed)
        folder = None if run_dir is None else run_dir / START
        records = records + measure_start(before, records, folder, facts | start_marks(start))
    if short is not None:
        raise short
    return records


def start_marks(opened: Opened) -> dict[str, Any]:
    """Return what records say of the weights that a training started from; nothing for any others."""
    if not opened.at_start or opened.start is None:
        return {}
    return {"at": AT_START, "start_digest": str(opened.start.get("digest"))[:12]}


def measure_start(
    start: Subject, records: Sequence[Record], folder: Path | None, facts: Mapping[str, Any]
) -> list[Record]:
    """Measure the weights that a run started from as its own were, or take what was measured before.

    Args:
        start: They.
        records: Of the run's own weights.
        folder: Holds the records of the start.
        facts: What these say beside how they were measured.
    """
    wanted = {replace(r, how={**r.how, "epoch": 0, **facts}).identity for r in records}
    kept = [] if folder is None or not (folder / FILE).exists() else read_results(folder)
    known = [record for record in kept if record.identity in wanted]
    if len(known) == len(wanted):
        return known
    if start.encoder.progress:
        print("the weights that it started from:", flush=True)
    return measure(start, list(dict.fromkeys(r.protocol for r in records)), run_dir=folder, facts=facts)


def results_folder(config: EvaluateConfig, opened: Opened) -> Path | None:
    """Return the folder that results and figures of an evaluation go to, or None where there is none."""
    return opened.run if config.run_dir is None else Path(config.run_dir).expanduser()


def announce_found(data: DataConfig, opened: Opened, splits: Splits) -> None:
    """Print what was found and left out, where the images are not those of the run, which has said so itself."""
    own = None if opened.config is None else opened.config["data"]
    now = asdict(data)
    if splits.found is not None and (own is None or any(now.get(key) != value for key, value in own.items())):
        print(*splits.found.lines(), sep="\n", flush=True)


def build_encoder(config: EvaluateConfig, network: nn.Module | None, progress: bool = True) -> Encoder:
    """Return a network with how the settings say that it is run; None is the raw pixels."""
    device = choose_device(config.accelerator)
    settings = config.eval
    workers = worker_count(config.data)
    return Encoder(network, settings.batch_size, workers, device, settings.precision, progress, settings.resize)


def bytes_of_features(opened: Opened, splits: Splits) -> int:
    """Return what the features of all parts take in a file, without those that training alone reads."""
    parts = (splits.train, splits.holdout, splits.test)
    return 4 * (opened.dim or 0) * sum(len(part) for part in parts if part is not None)


def leave_out_unlabelled(splits: Splits) -> Splits:
    """Keep the labelled images of each part that has some of both, with a note that has the numbers.

    Records count what is left. A part without any label stays as it is: what needs labels refuses it.
    """
    kept, without = {}, []
    for name in ("train", "holdout", "test"):
        part = getattr(splits, name)
        if part is None or (part.labels is None and part.targets is None):
            continue
        known = part.labels >= 0 if part.labels is not None else has_targets(part.targets.of(part.index))
        if bool(known.any()) and not bool(known.all()):
            kept[name] = part.subset(known.nonzero().flatten())
            without.append(f"{len(part) - len(kept[name])} of {len(part)} {name} images")
    if without:
        warnings.warn(f"{', '.join(without)} have no label and are left out of the evaluation.", stacklevel=3)
    return replace(splits, **kept)


def record_facts(opened: Opened, images: ImageDataset) -> dict[str, Any]:
    """Return what records say of a network from elsewhere: what it is and how its images are normalised."""
    if not opened.facts:
        return {}
    statistics = opened.normalization or images.normalization
    return {**opened.facts, "mean": list(statistics.mean), "std": list(statistics.std)}


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
