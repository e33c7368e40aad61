"""What happens around the training steps: checkpoints, signals, online evaluation, the first figure."""

from __future__ import annotations

import csv
import io
import math
import signal
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint
from torch import Tensor

from selfsup.augment import save_views_figure
from selfsup.checkpoint import copy_checkpoint
from selfsup.config import OnlineConfig, TrainerConfig
from selfsup.data import ImageDataset, Splits
from selfsup.data.loader import eval_batches
from selfsup.distributed import any_rank, world
from selfsup.engine.compilation import evaluating
from selfsup.engine.environment import device_memory_mb
from selfsup.engine.finite import require_finite
from selfsup.engine.sharding import ShardedStrategy
from selfsup.engine.stop import Interrupted, StopSignal
from selfsup.errors import UserError
from selfsup.eval import extract_features, knn
from selfsup.eval.features import labelled
from selfsup.eval.subject import SPLIT_OFF, evenly
from selfsup.functional import alignment, feature_std, rank_me
from selfsup.functional.arguments import trusted_values
from selfsup.methods import Method
from selfsup.nn import batch_statistics
from selfsup.ragged import Images, central_parts, unpack
from selfsup.random import fold_in
from selfsup.shortage import enough_memory
from selfsup.types import Batch
from selfsup.unit_range import unit_range
from selfsup.writing import replace_text

#: Seconds of a step beside which the ranks' asking each other is nothing; and the steps that show it.
SLOW_STEP, FIRST_STEPS = 1.0, 3

#: Metrics by which the best checkpoint may be kept: more is better for each.
BEST = ("online/knn", "health/rank")


class Checkpoints(Checkpoint):
    """Keep ``checkpoints/last.ckpt`` up to date, keep what is to stay beside it, and leave one when the run must stop.

    ``trainer.keep_every_epochs`` keeps ``epoch-0010.ckpt`` and so on, ``trainer.keep_best`` the ``best.ckpt``. Both are
    written before ``last.ckpt``: a run that is killed between them goes on from before, and writes them again.

    A signal is acted on after the running optimiser step, never within one: what is saved is a state that the
    uninterrupted run passes through too. Several ranks that take short steps ask each other only in those of which a
    row is written, when they wait for the device anyway. What would be saved after the last step of an epoch is saved
    when the epoch's evaluation is done too, so that no run goes on from between the two.

    A ``Checkpoint`` to Lightning, so that it comes after all that follow a metric and have a state of their own.
    """

    def __init__(self, run_dir: Path, settings: TrainerConfig, stop: StopSignal) -> None:
        self.folder, self.settings, self.stop = run_dir / "checkpoints", settings, stop
        self._best: float | None = None
        self._stopping = False
        self._steps = 0
        self._slow = False  # as all ranks see it
        self._since = 0.0
        stop.checkpoint = self.path

    @property
    def path(self) -> Path:
        """The checkpoint to go on from."""
        return self.folder / "last.ckpt"

    def state_dict(self) -> dict[str, Any]:
        return {"best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._best = state_dict["best"]

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.stop.listen()
        if self.stop.received:
            raise Interrupted(self.stop.received, None)
        self.stop.training = True
        self.stop.silent = not trainer.is_global_zero
        self._since = time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.is_last_batch or (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        assert isinstance(module, Method)
        self._steps += 1
        self._stopping = self._asks(trainer.global_step, module) and any_rank(bool(self.stop.received), module.device)
        every = self.settings.checkpoint_every_steps
        if self._stopping or (every and trainer.global_step % every == 0):
            self._save(trainer, module, [self.path])

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        if self._stopping:  # only now has Lightning logged the step that was saved
            raise Interrupted(self.stop.received or signal.SIGTERM, self.path)
        assert isinstance(module, Method)
        next_row = module.log_every_steps * (trainer.global_step // module.log_every_steps + 1)
        here = "this step" if world() is None or self._slow else f"step {next_row}, where all ranks ask each other"
        self.stop.after = "the end of this epoch" if trainer.is_last_batch else here

    def _asks(self, step: int, module: Method) -> bool:
        """Whether the ranks ask each other after this step, on which they agree."""
        if world() is None:
            return True
        now = time.monotonic()
        seconds, self._since = now - self._since, now
        if not (self._slow or self._steps <= FIRST_STEPS or step % module.log_every_steps == 0):
            return False
        self._slow = any_rank(seconds > SLOW_STEP, module.device)
        return True

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, Method)
        epoch, settings = trainer.current_epoch + 1, self.settings
        self._stopping = any_rank(bool(self.stop.received), module.device)
        kept = []
        if settings.keep_every_epochs and epoch % settings.keep_every_epochs == 0:
            kept.append(self.folder / f"epoch-{epoch:04d}.ckpt")
        if settings.keep_best is not None and self._is_best(trainer.callback_metrics.get(settings.keep_best)):
            kept.append(self.folder / "best.ckpt")
        every = settings.checkpoint_every_steps
        due = (
            epoch % settings.checkpoint_every_epochs == 0
            or epoch == trainer.max_epochs
            or trainer.should_stop  # another callback has seen enough
            or bool(every and trainer.global_step % every == 0)
        )
        if kept or due or self._stopping:
            self._save(trainer, module, [*kept, self.path])

    def _is_best(self, value: Tensor | None) -> bool:
        # where no evaluation took place the value is an earlier one, which is not above itself
        if value is None or (self._best is not None and float(value) <= self._best):
            return False
        self._best = float(value)
        return True

    def _save(self, trainer: pl.Trainer, module: Method, paths: list[Path]) -> None:
        require_finite(module)  # a broken state must not replace a good checkpoint
        first, *others = paths
        trainer.save_checkpoint(first, weights_only=False)
        if trainer.is_global_zero:
            for path in others:
                copy_checkpoint(first, path)


#: Columns of ``times.csv``: what differs between two equal runs.
TIMES = ("step", "seconds", "images_per_second", "memory_mb")


class Stopwatch(pl.Callback):
    """Count the seconds of training, over all the parts of a run that was resumed.

    The file ``times.csv`` has a row for every epoch, with the step as in ``metrics.csv``: the seconds so far, the
    images a second without what happens between epochs, and the most memory that the device, or on a CPU the process,
    has held since it started. A file of its own, as no two runs take the same time and the metrics of equal runs are
    equal.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._before = 0.0
        self._started = self._epoch_began = self._batch_ended = time.perf_counter()
        self._batches = 0
        self._epochs: list[tuple[int | float | None, ...]] = []

    @property
    def seconds(self) -> float:
        """Seconds so far, online evaluation included."""
        return self._before + time.perf_counter() - self._started

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._started = self._epoch_began = time.perf_counter()  # a run may go on within an epoch

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._epoch_began, self._batches = time.perf_counter(), 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._batch_ended = time.perf_counter()
        self._batches += 1

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, Method)
        taken = self._batch_ended - self._epoch_began
        speed = round(self._batches * module.batch_size / taken, 1) if self._batches else None
        memory = round(device_memory_mb(module.device), 1)
        self._epochs.append((trainer.global_step - 1, round(self.seconds, 3), speed, memory))
        if trainer.is_global_zero:
            text = io.StringIO(newline="")
            csv.writer(text).writerows([TIMES, *self._epochs])
            replace_text(self.path, text.getvalue())

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "epochs": self._epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._before = state_dict["seconds"]
        # of earlier versions a checkpoint has no epochs, or knows their steps and seconds only
        rows = [(*row, *[None] * (len(TIMES) - len(row))) for row in state_dict.get("epochs", ())]
        self._epochs = [(int(step), float(seconds), *others) for step, seconds, *others in rows]


class ViewsFigure(pl.Callback):
    """Save a picture of the first images and their views when a run starts."""

    def __init__(self, path: Path, dataset: ImageDataset, images: int = 8) -> None:
        self.path, self.dataset, self.images = path, dataset, images

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if not trainer.is_global_zero or self.path.exists():
            return
        assert isinstance(module, Method)
        batch = first_images(self.dataset, self.images, module.device)
        views = module.views(batch.image, fold_in(module.seed, trainer.current_epoch), batch.index, size=batch.size)
        images = unpack(Images(batch.image, batch.size))
        save_views_figure(images, views, self.path, self.dataset.normalization, count=self.images)


def first_images(dataset: ImageDataset, count: int, device: torch.device) -> Batch:
    """Return the first images of a dataset that can be decoded, on ``device``, without their labels."""
    batch = next(eval_batches(dataset.subset(torch.arange(min(count, len(dataset)))), count))
    return Batch(batch.image.to(device), None, batch.index, batch.size)


#: Features count as collapsed whose mean standard deviation times √D, L2-normalised, or whose rank about their mean is
#: below these.
COLLAPSED_STD, COLLAPSED_RANK = 0.02, 1.5

#: What the online evaluation needs less memory with.
LESS = "set online.bank to 64 or less, or online.every_epochs=0"

#: Images hardly differ whose pixels have a smaller standard deviation from image to image, as a part of their range.
SAME_IMAGES = 0.01


class OnlineEvaluation(pl.Callback):
    """Watch the features while they are learnt: kNN on held-out images, and health that needs no labels.

    Logged: ``online/knn``, of the images that have a label (without a hold-out of some training images, which are then
    no neighbours); ``health/std``, the features' mean standard deviation times
    √D after L2-normalisation (1 is spread evenly, 0 is collapsed); ``health/rank``, their effective rank;
    ``health/alignment``, the mean squared distance of two views, where there are two. It changes no weight and no
    running statistic.

    Features that two looks in a row find collapsed end the run: it is saved at the end of that epoch, then the error is
    raised. BatchNorm's running statistics lag behind in the first steps, so that features look collapsed that are not:
    the statistics of a batch have the last word.
    """

    def __init__(self, splits: Splits, config: OnlineConfig) -> None:
        # spread over the dataset: the images of a folder come class by class
        train, queries = splits.train, splits.holdout
        if not len(queries) and len(train) > 1:  # some of the training images stand for the hold-out
            queries = evenly(train, min(config.queries, math.ceil(SPLIT_OFF * len(train))))
            train = train.subset((~torch.isin(train.index, queries.index)).nonzero().flatten())
        self.bank = evenly(train, config.bank)
        self.queries = evenly(queries, config.queries)
        self.config = config
        self._collapsed_looks = 0
        self._message: str | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"collapsed_looks": self._collapsed_looks}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._collapsed_looks = state_dict["collapsed_looks"]

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        if not self.config.looks(epoch, trainer.max_epochs or 0):
            return
        assert isinstance(module, Method)
        collapse, values = "", dict[str, float]()
        # where each rank holds a part of the network, it takes all of them to run it
        if trainer.is_global_zero or isinstance(trainer.strategy, ShardedStrategy):
            with (
                evaluating(),
                enough_memory("the online evaluation", LESS),
            ):
                values = self.look(module)
                if values["health/std"] < COLLAPSED_STD or values["health/rank"] < COLLAPSED_RANK:
                    collapse = self.find_collapse(module)
        # to trainer.callback_metrics, on every rank: for callbacks that follow a metric
        for name, value in trainer.strategy.broadcast(values).items():
            module.log(name, value, logger=False, on_epoch=True, batch_size=1)
        collapsed = any_rank(bool(collapse), module.device)
        self._collapsed_looks = self._collapsed_looks + 1 if collapsed else 0
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.log_metrics({**values, "epoch": trainer.current_epoch}, step=trainer.global_step - 1)
        if self._collapsed_looks > 1 and self.config.stop_on_collapse:
            self._message = (
                f"{collapse} This was so at {self._collapsed_looks} looks in a row, so the run has ended after epoch "
                f"{epoch}, and is saved; resume= it with online.stop_on_collapse=false to go on all the same."
            )
            trainer.should_stop = True  # after the checkpoint of this epoch is written
        elif collapsed and epoch == trainer.max_epochs and trainer.is_global_zero:
            print(f"note: {collapse}", flush=True)

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self._message is not None:
            raise UserError(self._message)

    @trusted_values()
    def find_collapse(self, module: Method) -> str:
        """Return what is wrong with the features by the statistics of a batch; nothing where they are fine."""
        some = evenly(self.bank, 256)
        if len(some) < 2:
            return ""
        with batch_statistics(module.evaluated_backbone):
            found = extract_features(module.evaluated_backbone, some, device=module.device, progress=False).features
        constant = float(feature_std(found)) * found.shape[1] ** 0.5 < COLLAPSED_STD
        if not constant and float(rank_me(found - found.mean(0))) >= COLLAPSED_RANK:
            return ""
        batch = first_images(some, len(some), module.device)
        view = module.views(batch.image, fold_in(module.seed, 0), batch.index, size=batch.size)[0].image
        images = central_parts(Images(batch.image, batch.size), some.image_size)
        deviation = torch.tensor(some.normalization.std, device=view.device).view(-1, 1, 1)
        spread = min(float(unit_range(images).std(0).mean()), float((view * deviation).std(0).mean()))
        if spread < SAME_IMAGES:
            return (
                f"The images hardly differ from each other as the network sees them (by {spread:.1%} of the range of a "
                "pixel), so there is nothing to learn from: look at figures/views.png. Evaluation keeps the "
                "middle of an image at data.image_size; see data and augment.override.scale."
            )
        what = "all images look the same to the network" if constant else "they differ in one direction only"
        return (
            f"The features have collapsed: {what}. Look at optimizer.lr (too high?), method.temperature and augment "
            "first."
        )

    @trusted_values()
    def look(self, module: Method) -> dict[str, float]:
        """Return the metrics of the network as it is."""
        device, backbone = module.device, module.evaluated_backbone
        bank = extract_features(backbone, self.bank, device=device, progress=False)
        values = {
            "health/std": float(feature_std(bank.features)) * bank.features.shape[1] ** 0.5,
            "health/rank": float(rank_me(bank.features)),
        }
        batch = first_images(evenly(self.bank, 256), 256, device)
        views = module.views(batch.image, fold_in(module.seed, 0), batch.index, size=batch.size)
        mode = backbone.training
        backbone.eval()
        if len(views) > 1:
            with torch.inference_mode():
                pair = (backbone(view.image.to(module.dtype)) for view in views[:2])
                values["health/alignment"] = float(alignment(*pair))
        backbone.train(mode)
        bank = labelled(bank)
        if len(bank) and len(self.queries):
            queries = labelled(extract_features(backbone, self.queries, device=device, progress=False))
            if len(queries):
                k = min(self.config.k, len(bank))
                values["online/knn"] = knn(bank, queries, k=(k,), temperature=self.config.temperature)[k]
        return values
