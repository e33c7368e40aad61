"""What happens around the training steps: checkpoints, signals, online evaluation, the first figure."""

from __future__ import annotations

import csv
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.loggers.logger import rank_zero_experiment
from pytorch_lightning.loggers.csv_logs import CSVLogger, ExperimentWriter
from torch import Tensor

from selfsup.augment import save_views_figure
from selfsup.config import OnlineConfig
from selfsup.data import ImageDataset, Splits
from selfsup.distributed import any_rank, world
from selfsup.engine.compilation import evaluating
from selfsup.engine.sharding import ShardedStrategy
from selfsup.errors import UserError
from selfsup.eval import extract_features, knn
from selfsup.functional import alignment, feature_std, rank_me
from selfsup.methods import Method
from selfsup.random import fold_in


class Interrupted(Exception):
    """The run was told to stop and has left a checkpoint. ``signal`` is the number of the signal."""

    def __init__(self, number: int, checkpoint: Path) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.signal = number
        self.checkpoint = checkpoint


class SaveLast(pl.Callback):
    """Keep ``checkpoints/last.ckpt`` up to date, and leave one when Ctrl-C or SIGTERM asks the run to stop.

    A signal is acted on after the running optimiser step, never within one: what is saved is a state that the
    uninterrupted run passes through too. On several ranks it is the next step of which a row is written. A second
    signal ends the process at once.
    """

    def __init__(self, run_dir: Path, every_epochs: int, every_steps: int | None) -> None:
        self.path = run_dir / "checkpoints" / "last.ckpt"
        self.every_epochs, self.every_steps = every_epochs, every_steps
        self.received = 0
        self._stopping = False
        self._previous: dict[int, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            self._restore()
            raise KeyboardInterrupt
        self.received = number

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        whole_step = (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch
        if not whole_step:
            return
        assert isinstance(module, Method)
        # several ranks ask each other only where a row is written and they wait for the device anyway
        asked = world() is None or trainer.global_step % module.log_every_steps == 0
        stop = asked and any_rank(bool(self.received), module.device)
        if stop or (self.every_steps and trainer.global_step % self.every_steps == 0):
            self._save(trainer, module)
        self._stopping = stop

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        if self._stopping:  # only now has Lightning logged the step that was saved
            raise Interrupted(self.received or signal.SIGTERM, self.path)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        last = trainer.current_epoch + 1 == trainer.max_epochs
        if last or (trainer.current_epoch + 1) % self.every_epochs == 0:
            self._save(trainer, module)

    def _save(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, Method)
        require_finite(module)  # a broken state must not replace a good checkpoint
        trainer.save_checkpoint(self.path, weights_only=False)

    def teardown(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        self._restore()


def require_finite(module: Method) -> None:
    """Raise when a loss since the start was not finite."""
    if any_rank(not bool(module.finite), module.device):
        raise UserError(
            "The loss is not finite (NaN or infinity): lower optimizer.lr, lengthen optimizer.warmup_epochs, set "
            "trainer.gradient_clip, or use trainer.precision=32-true; the last checkpoint is from before."
        )


class Stopwatch(pl.Callback):
    """Count the seconds of training, over all the parts of a run that was resumed.

    The file ``times.csv`` tells the seconds at the end of every epoch, with the step as in ``metrics.csv``: a file of
    its own, as no two runs take the same time and the metrics of equal runs are equal.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._before = 0.0
        self._started = time.perf_counter()
        self._epochs: list[tuple[int, float]] = []

    @property
    def seconds(self) -> float:
        """Seconds so far, online evaluation included."""
        return self._before + time.perf_counter() - self._started

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._started = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._epochs.append((trainer.global_step - 1, round(self.seconds, 3)))
        if trainer.is_global_zero:
            with self.path.open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([("step", "seconds"), *self._epochs])

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "epochs": self._epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._before = state_dict["seconds"]
        # a checkpoint of an earlier version has no epochs
        self._epochs = [(int(step), float(seconds)) for step, seconds in state_dict.get("epochs", ())]


class WatchLoss(pl.Callback):
    """End the run when the loss is not finite. Looks only now and then, to keep the device from waiting."""

    def __init__(self, every_steps: int) -> None:
        self.every_steps = every_steps

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(module, Method)
        if (batch_idx + 1) % self.every_steps == 0:
            require_finite(module)


class ViewsFigure(pl.Callback):
    """Save a picture of the first images and their views when a run starts."""

    def __init__(self, path: Path, dataset: ImageDataset, images: int = 8) -> None:
        self.path, self.dataset, self.images = path, dataset, images

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if not trainer.is_global_zero or self.path.exists():
            return
        assert isinstance(module, Method)
        images, index = first_images(self.dataset, self.images, module.device)
        views = module.views(images, seed=fold_in(module.seed, trainer.current_epoch), index=index)
        save_views_figure(images, views, self.path, self.dataset.normalization, count=self.images)


def first_images(dataset: ImageDataset, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the first images of a dataset that can be decoded and their indices, on ``device``."""
    positions = torch.arange(min(count, len(dataset)))
    images, decoded = dataset.read_decodable(positions)
    return images[decoded].to(device), dataset.index[positions[decoded]].to(device)


class OnlineEvaluation(pl.Callback):
    """Watch the features while they are learnt: kNN on held-out images, and health that needs no labels.

    Logged: ``online/knn``; ``health/std``, the features' mean standard deviation times √D after L2-normalisation
    (1 is spread evenly, 0 is collapsed); ``health/rank``, their effective rank; ``health/alignment``, the mean squared
    distance of two views. It changes no weight and no running statistic.
    """

    def __init__(self, splits: Splits, config: OnlineConfig) -> None:
        self.bank = splits.train.subset(torch.arange(min(config.bank, len(splits.train))))
        self.queries = splits.holdout.subset(torch.arange(min(config.queries, len(splits.holdout))))
        self.config = config

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        if epoch % self.config.every_epochs and epoch != trainer.max_epochs:
            return
        assert isinstance(module, Method)
        collapsed = False
        # where each rank holds a part of the network, it takes all of them to run it
        if trainer.is_global_zero or isinstance(trainer.strategy, ShardedStrategy):
            with evaluating():
                values = self.look(module)
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.log_metrics({**values, "epoch": trainer.current_epoch}, step=trainer.global_step - 1)
            collapsed = values["health/std"] < 0.02 or values["health/rank"] < 1.5
        if any_rank(collapsed and self.config.stop_on_collapse, module.device):
            raise UserError(
                "The features have collapsed: all images look the same to the network. Look at optimizer.lr (too "
                "high?), method.temperature and augment first; online.stop_on_collapse=false goes on all the same."
            )

    def look(self, module: Method) -> dict[str, float]:
        """Return the metrics of the network as it is."""
        device, backbone = module.device, module.evaluated_backbone
        bank = extract_features(backbone, self.bank, device=device, progress=False)
        values = {
            "health/std": float(feature_std(bank.features)) * bank.features.shape[1] ** 0.5,
            "health/rank": float(rank_me(bank.features)),
        }
        images, index = first_images(self.bank, 256, device)
        views = module.views(images, seed=fold_in(module.seed, 0), index=index)
        mode = backbone.training
        backbone.eval()
        with torch.inference_mode():
            values["health/alignment"] = float(alignment(*(backbone(v.image.to(module.dtype)) for v in views[:2])))
        backbone.train(mode)
        if bank.labels is not None and len(self.queries) and bool((bank.labels >= 0).all()):
            queries = extract_features(backbone, self.queries, device=device, progress=False)
            k = min(self.config.k, len(bank.features))
            values["online/knn"] = knn(bank, queries, k=(k,), temperature=self.config.temperature)[k]
        return values


class MetricsCsv(CSVLogger):
    """Lightning's CSV logger for a run that may be resumed: rows up to the resumed step stay, later ones go."""

    def __init__(self, run_dir: Path, resumed_step: int = 0) -> None:
        super().__init__(save_dir=run_dir, name="", version="", flush_logs_every_n_steps=1)
        self._resumed_step = resumed_step

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None:
            self._experiment = _KeepingWriter(self.log_dir, self._resumed_step)
        return self._experiment


class _KeepingWriter(ExperimentWriter):
    def __init__(self, log_dir: str, resumed_step: int) -> None:
        self._resumed_step = resumed_step
        super().__init__(log_dir)

    def _check_log_dir_exists(self) -> None:
        path = Path(self.metrics_file_path)
        if not path.is_file():
            return
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        kept = [row for row in rows if int(row["step"]) < self._resumed_step]
        self.metrics_keys = sorted(rows[0]) if rows else []
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=self.metrics_keys)
            writer.writeheader()
            writer.writerows(kept)
