"""Training: from a configuration to a run folder."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from selfsup.augment import build_views, colors_left_out
from selfsup.checkpoint import INFO, find_checkpoint, read_checkpoint, run_of, start_facts
from selfsup.config import TrainConfig, from_values
from selfsup.data import Splits, load_splits
from selfsup.engine.callbacks import Stopwatch
from selfsup.engine.checks import check_batch, check_before_data, check_disk, check_settings
from selfsup.engine.devices import deterministic
from selfsup.engine.environment import device_memory_mb, keep_memory, quieten, saves_memory
from selfsup.engine.fitting import fitting
from selfsup.engine.held import attach_anchor, held_lines, hold
from selfsup.engine.log import RunLog
from selfsup.engine.loggers import keep_rows
from selfsup.engine.progress import Progress
from selfsup.engine.ranks import together
from selfsup.engine.resuming import Change, changes, check_changes, check_fit, restoring, saved_config
from selfsup.engine.run_folder import (
    begun_without_checkpoint,
    choose_run_dir,
    fill_run_dir,
    held,
    is_first_process,
    make_run_dir,
    note_changes,
    note_imports,
)
from selfsup.engine.sharding import ShardedStrategy, check_shardable
from selfsup.engine.start import save_start, start_from, start_lines
from selfsup.engine.stop import StopSignal
from selfsup.engine.summary import next_command, summary
from selfsup.engine.teaching import check_teacher, teacher_lines
from selfsup.engine.trained_images import SEEN, go_on
from selfsup.engine.trainer import TrainData, build_trainer
from selfsup.errors import UserError
from selfsup.eval import Record, add_results, read_results
from selfsup.eval.results import peak_memory_mb
from selfsup.methods import Method, Parts
from selfsup.nn import Backbone, build_backbone, side_step
from selfsup.opened import open_teacher
from selfsup.optimization import build_optimizer, learning_rate_factors, scaled_lr
from selfsup.registry import methods
from selfsup.report import save, training_curves
from selfsup.report.metrics import read_metrics
from selfsup.types import ImageFacts, as_size, size_words
from selfsup.wording import command, counted

AUTO = "auto"


def train(config: TrainConfig, callbacks: Sequence[pl.Callback] = ()) -> Path:
    """Train a method and return the run folder.

    The folder receives ``config.yaml``, ``environment.json``, ``metrics.csv``, ``times.csv``, ``train.log``,
    ``checkpoints/last.ckpt`` and ``figures/``. With ``config.resume`` the run it names goes on in its own folder, and
    the result is bit for bit the one of a run that was never stopped. Settings that differ from those it had, and may,
    count from there on; they are shown and noted in ``changes.json``. ``resume="auto"`` starts the run of ``run_dir``,
    or goes on with it, or says that it is done.

    Args:
        config: The run.
        callbacks: Further ones of Lightning's, called before the run's own. Those that follow a metric find the online
            evaluation's too (``EarlyStopping("online/knn", mode="max")``); a ``ModelCheckpoint`` writes to
            ``checkpoints/`` unless it names a folder.

    Raises:
        UserError: A setting, a file or a folder is not as it must be. Nothing that existed is overwritten.
        Interrupted: Ctrl-C or SIGTERM; the run has left a checkpoint, if it had begun to train.
    """
    check_settings(config)
    checkpoint = _checkpoint_to_resume(config)
    with RunLog() as log, StopSignal() as stop, deterministic(), contextlib.ExitStack() as lock:
        work = _Work(log, stop, lock, callbacks)
        if checkpoint is None:
            return _train(dataclasses.replace(config, resume=None), _new_run_dir(config), None, work)
        run_dir = run_of(checkpoint)
        if is_first_process():
            lock.enter_context(held(run_dir))
        resumed = _Resumed.read(checkpoint, config)
        if resumed.epochs >= config.trainer.max_epochs:
            if is_first_process():
                _finish(config, run_dir, resumed, log)
            return run_dir
        config = dataclasses.replace(config, run_dir=resumed.config["run_dir"], resume=None)
        return _train(config, run_dir, resumed, work)


@dataclasses.dataclass(frozen=True)
class _Work:
    """What goes on around a training: its log, its ear for signals, the lock of its folder, a user's own callbacks."""

    log: RunLog
    stop: StopSignal
    lock: contextlib.ExitStack
    callbacks: Sequence[pl.Callback]


@dataclasses.dataclass(frozen=True)
class _Resumed:
    """What a run goes on from: a checkpoint, what is in it, and the settings that differ from those in it."""

    checkpoint: Path
    content: dict[str, Any]
    config: dict[str, Any]
    changed: list[Change]

    @classmethod
    def read(cls, checkpoint: Path, config: TrainConfig) -> _Resumed:
        content = read_checkpoint(checkpoint)
        saved = saved_config(content)
        changed = changes(saved, config)
        check_changes(changed)
        return cls(checkpoint, content, saved, changed)

    @property
    def epochs(self) -> int:
        return int(self.content[INFO]["epochs_done"])

    @property
    def step(self) -> int:
        return int(self.content["global_step"])


def _checkpoint_to_resume(config: TrainConfig) -> Path | None:
    """Return the checkpoint that a run goes on from; None for one that starts."""
    if config.resume is None:
        return None
    if config.resume != AUTO:
        return find_checkpoint(config.resume)
    if config.run_dir is None:
        raise UserError("resume=auto starts or goes on with the run of run_dir; set run_dir.")
    last = Path(config.run_dir).expanduser() / "checkpoints" / "last.ckpt"
    return last if last.is_file() else None


def _new_run_dir(config: TrainConfig) -> Path:
    if config.resume is None:
        return choose_run_dir(config)
    run_dir = Path(str(config.run_dir))
    if run_dir.exists() and not begun_without_checkpoint(run_dir):
        raise UserError(f"run_dir: {run_dir} holds files that a run does not begin with; choose another.")
    return run_dir


def _train(config: TrainConfig, run_dir: Path, resumed: _Resumed | None, work: _Work) -> Path:
    """Train from the start or from where a run stopped, once it is settled which of them."""
    quieten()
    check_before_data(config)
    pl.seed_everything(config.seed, verbose=False)
    if not saves_memory(config.trainer):
        keep_memory()
    splits = load_splits(config.data)
    stopwatch = Stopwatch(run_dir / "times.csv")
    step, epochs = (resumed.step, resumed.epochs) if resumed is not None else (0, 0)
    trainer = build_trainer(config, splits, run_dir, step, stopwatch, work.stop, work.callbacks)
    data = TrainData(splits, config)
    # a batch that does not fit is found before a folder is made
    batches = len(data.loader(world_size=trainer.world_size))
    progress = Progress(config, run_dir, batches, work.log)
    trainer.callbacks.insert(-1, progress)  # type: ignore[attr-defined]  # before the checkpoint is saved
    method = build_method(config, splits, trainer.world_size, starts=resumed is None)
    if resumed is not None:
        method.checkpoint_info["start"] = resumed.content[INFO].get("start")
        check_teacher(resumed.content[INFO].get("teacher"), method.checkpoint_info["teacher"])
    check_batch(config, method, trainer.world_size)
    if config.trainer.precision.startswith("64"):
        method.double()  # Lightning does it after it has read a checkpoint, which would be rounded
    if isinstance(trainer.strategy, ShardedStrategy):
        check_shardable(method, config)
    # mistakes in the optimiser's settings, too, are found before a folder is made; Lightning builds its own later
    optimizer = build_optimizer(method.param_groups(), config.optimizer, scaled_lr(config.optimizer, config.batch_size))
    learning_rate_factors(config.optimizer, 1, 1, optimizer)
    if resumed is not None:
        check_fit(method.state_dict(), resumed.content, resumed.changed)
        known = resumed.content[INFO].get("membership")
        resumed.content.clear()  # Lightning reads it again
    if trainer.is_global_zero:
        check_disk(run_dir, config, method, optimizer, epochs)
        if resumed is None:
            make_run_dir(run_dir, again=run_dir.exists())
            work.lock.enter_context(held(run_dir))
            fill_run_dir(run_dir, config, splits, method.checkpoint_info)
            if method.checkpoint_info["start"] is not None:
                save_start(method, run_dir, splits.membership)
        work.log.keep(run_dir)
        if resumed is not None:
            note_changes(run_dir, config, step, epochs, resumed.changed)
            note_imports(run_dir)
        _announce(config, splits, run_dir, method, None if resumed is None else resumed.changed)
        if resumed is not None and splits.membership is not None:
            note = go_on(run_dir, splits.membership, known and known["digest"])
            if note is not None:
                print(f"note: data.root: {note}.", flush=True)
    else:
        work.log.keep(run_dir, trainer.global_rank)
    checkpoint = None if resumed is None else resumed.checkpoint
    ranks = trainer.global_rank, trainer.world_size
    with together(*ranks), progress.watching(*ranks), fitting(config, run_dir), restoring(checkpoint):
        trainer.fit(method, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    if trainer.is_global_zero:
        seconds = stopwatch.seconds
        record = _training_record(config, len(splits.pretrain), trainer.current_epoch, seconds)
        choices = {} if len(splits.holdout) else {"choices_on": SEEN}
        found = {**choices, "peak_memory_mb": round(peak_memory_mb(), 1), **start_facts(method.checkpoint_info)}
        add_results(run_dir, [dataclasses.replace(record, found=found)])
        if (run_dir / "metrics.csv").exists():  # a short run may end before the first row
            save(training_curves(run_dir / "metrics.csv"), run_dir / "figures" / "training.png")
        memory = device_memory_mb(trainer.strategy.root_device)
        print(summary(config, run_dir, progress, seconds, memory), flush=True)
    return run_dir


def _finish(config: TrainConfig, run_dir: Path, resumed: _Resumed, log: RunLog) -> None:
    """Write what a run that was stopped after its last checkpoint lacks, and say what that was.

    Raises:
        UserError: Nothing is missing, and the run was named to go on.
    """
    written = []
    records = read_results(run_dir) if (run_dir / "results.json").exists() else []
    if not any(r["protocol"] == "training" and r.get("epochs") == resumed.epochs for r in records):
        info, watched = resumed.content[INFO], resumed.content["callbacks"].get("Stopwatch", {})
        images = info.get("images") or len(load_splits(config.data).pretrain)  # an earlier version did not keep it
        record = _training_record(config, images, resumed.epochs, float(watched.get("seconds", 0.0)))
        record = dataclasses.replace(record, found=start_facts(info))
        written.append(add_results(run_dir, [record]).name)
    metrics, curves = run_dir / "metrics.csv", run_dir / "figures" / "training.png"
    if metrics.exists() and read_metrics(metrics).notes:
        keep_rows(metrics, resumed.step)
        written.append(metrics.name)
    if metrics.exists() and not (curves.exists() and curves.stat().st_mtime >= metrics.stat().st_mtime):
        save(training_curves(metrics), curves)
        written.append(str(curves.relative_to(run_dir)))
    done = f"this run has already trained {'its one epoch' if resumed.epochs == 1 else f'its {resumed.epochs} epochs'}"
    if written:
        log.keep(run_dir)
        print(f"{run_dir}: {done}; repaired: {', '.join(written)}.", flush=True)
    elif config.resume == AUTO:
        print(f"{run_dir}: {done}, and nothing is missing.", flush=True)
    else:
        raise UserError(f"resume: {done}, and nothing is missing; a larger trainer.max_epochs lets it go on.")
    if changed := [str(change) for change in resumed.changed if change.key != "trainer.max_epochs"]:
        print(f"note: nothing was trained, so these changes have no effect: {'; '.join(changed)}.", flush=True)
    print(next_command(config, run_dir), flush=True)


def build_method(config: TrainConfig, splits: Splits, world_size: int = 1, *, starts: bool = False) -> Method:
    """Build the method of a configuration.

    Args:
        config: The run.
        splits: Its data.
        world_size: Number of ranks.
        starts: Give the backbone, and with it a momentum encoder, the weights of ``backbone.from``; else all weights
            are random.

    Raises:
        UserError: Settings that do not fit together.
    """
    data = splits.pretrain
    method = assemble(config, data.facts, data.index, data.labels is not None, world_size, starts=starts)
    method.checkpoint_info["membership"] = None if splits.membership is None else splits.membership.summary()
    return method


def assemble(
    config: TrainConfig, data: ImageFacts, index: Tensor, labelled: bool, world_size: int = 1, *, starts: bool = False
) -> Method:
    """Build a method as :func:`build_method` does, by what is known of its training images, such as their ``index``.

    Raises:
        UserError: As there.
    """
    if len(config.data.mean) != data.channels or len(config.data.std) != data.channels:
        raise UserError(
            f"data.mean and data.std need {data.channels} values each, one for each channel of {data.name}; selfsup "
            f"data {data.name} --statistics, with the same data.* settings, measures them."
        )
    views = build_views(
        config.augment,
        config.data.image_size,
        data.normalization,
        len(index) * config.trainer.max_epochs,
        side_step(config.backbone, data.channels),
    )
    image_sizes = [*views.sizes, as_size(config.data.image_size)]
    backbone = build_backbone(config.backbone, data.channels, data.normalization, image_sizes)
    start = start_from(backbone, config.backbone) if starts and config.backbone.from_ is not None else None
    if _fills_vectors(backbone):
        backbone.to(memory_format=torch.channels_last)
    original, held = hold(backbone, config.backbone)
    backbone.save_memory(config.trainer.chunk_size, config.trainer.activation_checkpointing)
    teacher, about_teacher = open_teacher(config.method, data.channels, data.normalization, views.sizes[0])
    run = config.optimizer, config.batch_size, world_size, config.seed, labelled
    parts = Parts(backbone, views, *run, index=index, teacher=teacher)
    parts.objective, parts.negatives = config.objective, config.negatives
    method: Method = methods[config.method.name].target(config.method, parts)
    attach_anchor(method, original, config.backbone)
    method.checkpoint_info = {
        "config": dataclasses.asdict(config),
        "in_channels": data.channels,
        "images": len(index),
        "membership": None,
        "image_sizes": image_sizes,
        "mean": list(data.normalization.mean),
        "std": list(data.normalization.std),
        "start": None if start is None else dataclasses.asdict(start),
        "held": held,
        "teacher": about_teacher,
        "colors_left_out": colors_left_out(views, data.channels),
    }
    return method


def _fills_vectors(backbone: Backbone) -> bool:
    """Whether convolutions gain from having the channels innermost, on a CPU and on tensor cores.

    Below a vector's width they do not, and oneDNN's backward pass for such narrow layers has been seen to crash.
    """
    return all(m.out_channels % 16 == 0 for m in backbone.modules() if isinstance(m, nn.Conv2d))


def _training_record(config: TrainConfig, images: int, epochs: int, seconds: float) -> Record:
    how = {"data": config.data.name, "images": images, "epochs": epochs}
    how |= {"batch_size": config.batch_size, "seed": config.seed}
    return Record(protocol="training", split="pretrain", metric="seconds", value=round(seconds, 1), how=how)


def _announce(
    config: TrainConfig, splits: Splits, run_dir: Path, method: Method, changed: Sequence[Change] | None
) -> None:
    first = changed is None
    weights = sum(p.numel() for p in method.backbone.parameters())
    effective = config.batch_size * config.trainer.accumulate
    sizes = ", ".join(map(size_words, dict.fromkeys(method.views.sizes)))
    print(
        f"{config.scheme} on {len(splits.pretrain):,} images of {config.data.name} "
        f"({size_words(config.data.image_size)} px), "
        f"{config.backbone.name} with {weights / 1e6:.2f} M weights, {counted(config.trainer.max_epochs, 'epoch')} of "
        f"{counted(len(splits.pretrain) // config.batch_size, 'step')}, batch {config.batch_size}, "
        f"learning rate {scaled_lr(config.optimizer, effective):.4g} ({config.optimizer.name}), "
        f"{len(method.views.sizes)} {config.augment.recipe} views of {sizes} px"
        f"\nrun folder: {run_dir}",
        *(() if splits.found is None else splits.found.lines()),
        *(changed or ()),
        sep="\n",
        flush=True,
    )
    about = method.checkpoint_info
    said = *start_lines(about["start"]), *held_lines(about["held"]), *teacher_lines(about["teacher"])
    for line in said * first:
        print(line, flush=True)
    if first and not len(splits.holdout):
        print(f"note: data.holdout=0: choices, and online/knn, are made on {SEEN}.", flush=True)
    if first and (names := method.checkpoint_info["colors_left_out"]):
        print(
            f"note: {', '.join(names)} of the views {'is' if len(names) == 1 else 'are'} left out, as colours need "
            f"three channels and these images have {splits.pretrain.channels}.",
            flush=True,
        )
    if config.trainer.accumulate > 1 and method.couples_images:
        print(
            f"note: trainer.accumulate={config.trainer.accumulate} adds up gradients of batches that never meet: "
            f"{config.method.name} compares the {config.batch_size} images of one batch only, so this adds no "
            f"negatives and nothing else to compare with; batch_size={effective} with trainer.chunk_size does.",
            flush=True,
        )
    queue_size = getattr(config.method, "queue_size", 0)
    if queue_size > len(splits.pretrain):
        print(
            f"note: method.queue_size={queue_size} is more than the {len(splits.pretrain)} training images, so the "
            "queue holds older keys of the very image a query shows; a smaller queue is better.",
            flush=True,
        )


def load_resumed_config(overrides: Sequence[str]) -> TrainConfig:
    """Return the configuration of the run that ``resume=`` names, as it is kept in its checkpoint.

    Raises:
        UserError: As ``read_checkpoint``, or an override that changes what the run is.
    """
    resume = next(o.split("=", 1)[1] for o in overrides if o.startswith("resume="))
    if begun_without_checkpoint(Path(resume)):
        again = command("train", "--config", f"{resume}/config.yaml", f"run_dir={resume}", "resume=auto")
        raise UserError(f"resume: {resume} was stopped before its first checkpoint; {again} starts it again.")
    saved = saved_config(read_checkpoint(resume))
    return cast(TrainConfig, from_values({**saved, "run_dir": None}, overrides))
