"""What one sees of a training: a bar of the whole run, a line an epoch, how long it takes, and what ranks wait for."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from selfsup.config import TrainConfig
from selfsup.engine.arrival import Arrival
from selfsup.engine.log import LOCK, RunLog
from selfsup.engine.pace import Length, Pace, in_words
from selfsup.errors import UserError
from selfsup.wording import command, counted

TICK = 0.5  # seconds between two looks at the bar
MINUTE = 60.0  # seconds between two lines where there is no bar, and the longest silence of another rank
WEEK = 6 * 86400.0  # seconds within which the name of a day says which it is
LONG = 3600.0  # seconds of a training that are worth a word in advance
SHORTLY = {"joining": "waiting for all ranks", "starting": "starting", "evaluation": "evaluating", "saving": "saving"}
FEW, SOON = 3, 3.0  # steps, and seconds of them, after which its length can be told


class Progress(pl.Callback):
    """Shows how a training goes, as a context manager around it; what stays is in ``train.log``, too.

    On a terminal and in a notebook a bar of the whole run moves twice a second, by the clock while a step is slow.
    Elsewhere a line is written when an epoch ends, and every minute. Other ranks than the first are silent, until
    something takes them longer than a minute: then they say what they wait for.

    The loss comes from the device by itself (:class:`~selfsup.engine.arrival.Arrival`): no step waits for being shown.

    Args:
        config: Of the run.
        run_dir: Its folder.
        batches: Batches of an epoch.
        log: Where lines go.

    Attributes:
        pace: How fast it goes.
        last: The newest values, by what they are called here.
    """

    def __init__(self, config: TrainConfig, run_dir: Path, batches: int, log: RunLog) -> None:
        epochs = config.trainer.max_epochs
        looks = config.online.looks
        self.config, self.run_dir = config, run_dir
        self.run_log = log  # Lightning gives every callback a `log` of its own
        self.pace = Pace(Length(epochs, batches, config.batch_size, lambda epoch: looks(epoch, epochs)))
        self.last: dict[str, float] = {}
        self.rank, self.world_size = 0, 1
        self.doing = "starting"
        self._doing_since = time.monotonic()
        self._epoch = 0
        self._bar: Any = None
        self._loss: Arrival | None = None
        self._sum: Tensor | None = None
        self._forecast = False
        self._said = time.monotonic()
        self._patience = MINUTE
        self._ended = threading.Event()

    @contextlib.contextmanager
    def watching(self, rank: int, world_size: int) -> Iterator[None]:
        """Show what goes on inside."""
        self.rank, self.world_size = rank, world_size
        self.begin("joining" if world_size > 1 else "starting")
        if self.config.trainer.progress and not rank:
            self._open()
        ticker = threading.Thread(target=self._tick, name="progress", daemon=True)
        ticker.start()
        try:
            yield
        finally:
            self._ended.set()
            ticker.join()
            self._close()

    # --- what happens -----------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._loss = Arrival(module.device)
        self.on_train_epoch_start(trainer, module)  # which Lightning leaves out where a run goes on within an epoch

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._epoch = trainer.current_epoch
        done = trainer.fit_loop.epoch_loop.batch_progress.current.ready  # of the epoch before, unless that goes on
        self.pace.begin_epoch(self._epoch, done % self.pace.length.batches)
        self._sum = torch.zeros((), device=module.device)
        self.begin("step")

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert self._loss is not None
        assert self._sum is not None
        loss = outputs["loss"] * trainer.accumulate_grad_batches
        self._sum += loss
        self._loss.send(loss)
        self.last["learning rate"] = float(trainer.optimizers[0].param_groups[0]["lr"])
        self.pace.end_batch()
        self.begin("evaluation" if trainer.is_last_batch and self.pace.length.looks(self._epoch + 1) else "step")
        self._foretell(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        epoch, taken = self._epoch + 1, self.pace.epoch_batches
        values = {} if self._sum is None or not taken else {"loss": float(self._sum) / taken}
        values |= {"learning rate": self.last["learning rate"]} if "learning rate" in self.last else {}
        if self.pace.length.looks(epoch):
            found = trainer.callback_metrics
            for name, key in (("online kNN", "online/knn"), ("effective rank", "health/rank")):
                if key in found:
                    values[name] = self.last[name] = float(found[key])
        self.last |= values
        self.begin("saving")
        if not self.rank:
            speed = [f"{_speed(self.pace.epoch_images_per_second)} images/s"] if taken else []
            words = in_words_each(values) + speed
            left = self.pace.left
            if left is not None and epoch < self.pace.length.epochs:
                words.append(f"{in_words(left)} left")
            self._say(f"epoch {epoch}/{self.pace.length.epochs}: {', '.join(words)}")

    # --- what is shown ----------------------------------------------------------------------------------------------

    def begin(self, what: str) -> None:
        """Note what the training does from now on."""
        self.doing, self._doing_since, self._patience = what, time.monotonic(), MINUTE

    def _say(self, line: str) -> None:
        """Print a line, which the log keeps; without ``trainer.progress`` only the log has it."""
        self._said = time.monotonic()
        if self.config.trainer.progress:
            print(line, flush=True)
        else:
            self.run_log.write(line)

    def _foretell(self, trainer: pl.Trainer) -> None:
        """Say once how long it will take, where that is long."""
        pace = self.pace
        seconds = pace.batch_seconds
        if self._forecast or self.rank or seconds is None or pace.left is None:
            return
        if pace.timed < FEW - 1 or pace.timed * seconds < SOON:
            return
        self._forecast = True
        if pace.left < LONG:
            return
        form = "%A %H:%M" if pace.left < WEEK else "%d %B"
        end = time.strftime(form, time.localtime(time.time() + pace.left))
        config, file = self.config, str(self.run_dir / "config.yaml")
        settings = (
            f"trainer.max_epochs={config.trainer.max_epochs}, data.image_size={config.data.image_size}, "
            f"backbone.name={config.backbone.name}"
        )
        gpu = ", a GPU far less" if trainer.strategy.root_device.type == "cpu" else ""
        self._say(
            f"about {in_words(pace.left)} at this speed, until {end}: {seconds:.2g} s for "
            f"{counted(pace.length.images, 'image')}. "
            f"Fewer epochs, smaller images or a smaller network take less ({settings}){gpu}."
        )
        self._say(f"where the time goes, and which settings help: {command('doctor', '--config', file)}")

    def _tick(self) -> None:
        while not self._ended.wait(TICK):
            # what shows a training must never end it
            with contextlib.suppress(UserError, OSError, RuntimeError, ValueError):
                self._look()

    def _look(self) -> None:
        if self._bar is not None:
            self._draw()
            return
        now = time.monotonic()
        waited = now - self._doing_since
        if self.rank:
            usual = 3 * (self.pace.batch_seconds or 0.0) if self.doing == "step" else 0.0
            if waited > max(self._patience, usual):
                self._patience = 2 * waited
                self._say_rank(f"{self._waits()} ({in_words(waited)} so far)")
        elif self.config.trainer.progress and now - self._said > MINUTE:
            what = self._waits() if self._loss is None else f"{self._place()}: {', '.join(self._values())}"
            self._say(what)

    def _say_rank(self, line: str) -> None:
        clear = "\r\x1b[K" if sys.stderr.isatty() else ""  # the bar of the first rank may stand there
        self.run_log.write(line)
        stream = sys.__stderr__ or sys.stderr
        stream.write(f"{clear}rank {self.rank} of {self.world_size}: {line}\n")
        stream.flush()

    def _waits(self) -> str:
        by_first = "waits for rank 0, which " if self.rank else ""
        return {
            "joining": f"waits for all {self.world_size} processes to start and join",
            "starting": "starts",
            "step": f"takes step {self.pace.done + 1}, or waits in it for the other ranks",
            "evaluation": f"{by_first}evaluates the features",
            "saving": f"{by_first}saves the epoch",
        }[self.doing]

    def _place(self) -> str:
        length = self.pace.length
        return f"epoch {min(self._epoch + 1, length.epochs)}/{length.epochs}, step {self.pace.done:,}/{length.total:,}"

    def _values(self) -> list[str]:
        """Return what is known at this moment, the most important first."""
        known = dict(self.last)
        if self._loss is not None and self._loss.value is not None:
            known["loss"] = self._loss.value
        words = in_words_each(known)
        speed, left = self.pace.images_per_second, self.pace.left
        words[2:2] = [f"{_speed(speed)} images/s"] if speed else []
        return words + ([f"{in_words(left)} left"] if left is not None and self._bar is None else [])

    # --- the bar ----------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a notebook without ipywidgets has lines in place of a bar
            from tqdm.auto import tqdm

        notebook = any(kind.__module__ == "tqdm.notebook" for kind in tqdm.__mro__)
        stream = getattr(sys.stderr, "stream", sys.stderr)
        if os.environ.get("TQDM_DISABLE") or not (notebook or stream.isatty()):
            return
        with LOCK:
            file = None if notebook else stream
            self._bar = tqdm(total=self.pace.length.total, file=file, leave=False, bar_format="starting")
            if not notebook:
                self.run_log.clear, self.run_log.draw = self._bar.clear, self._draw
            self._draw()

    def _draw(self) -> None:
        with LOCK:
            if self._bar is None:
                return
            length, left = self.pace.length, self.pace.left
            doing = f" {SHORTLY[self.doing]}" if self.doing in SHORTLY else ""
            began = self._bar.start_t
            times = f"{_clock(time.time() - began)}<{'?' if left is None else _clock(left)}"
            words = " ".join(_short(word) for word in self._values())
            epoch = f"epoch {min(self._epoch + 1, length.epochs)}/{length.epochs}{doing}"
            self._bar.bar_format = f"{epoch} |{{bar}}| {self.pace.done}/{length.total} {times} {words}"
            with contextlib.suppress(OSError, ValueError):
                self._bar.ncols = (os.get_terminal_size(self._bar.fp.fileno()).columns or 80) - 1
            self._bar.n = self.pace.position
            self._bar.refresh()

    def _close(self) -> None:
        with LOCK:
            self.run_log.clear = self.run_log.draw = None
            if self._bar is not None:
                self._bar.close()
            self._bar = None


def in_words_each(values: Mapping[str, float]) -> list[str]:
    """Return values, by what they are called here, as they are read."""
    forms = {
        "loss": "loss {:.4g}",
        "learning rate": "learning rate {:.3g}",
        "online kNN": "online kNN {:.1%}",
        "effective rank": "effective rank {:.1f}",
    }
    return [form.format(values[name]) for name, form in forms.items() if name in values]


def _speed(images: float) -> str:
    return f"{images:,.0f}" if images >= 10 else f"{images:.2g}"


def _short(word: str) -> str:
    """Shorten a value for the bar, which has one line."""
    short = {"learning rate": "lr", "images/s": "img/s", "online kNN": "kNN", "effective rank": "rank"}
    for name, other in short.items():
        word = word.replace(name, other)
    return word


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
