"""Settings that are timed in turns with the present ones, so that a machine that slows down slows all of them."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytorch_lightning as pl
import torch

from selfsup.config import TrainConfig, from_values
from selfsup.data import Splits, load_splits
from selfsup.data.workers import worker_count
from selfsup.doctor.bench import Bench, Watcher
from selfsup.doctor.candidates import Candidate, candidates, in_memory
from selfsup.doctor.clock import Clock, seconds_of, synchronize
from selfsup.doctor.report import LEAST, Trial
from selfsup.errors import UserError
from selfsup.methods import Method

ROUNDS = 5  # in each of which every setting is tried once


@dataclass
class Variant:
    """A configuration to time, and what was found.

    Attributes:
        name: Its settings, as on the command line.
        config, splits, method: What trains; the method is trained on from round to round.
        threads: Threads of the CPU.
        images: Images a step.
        precomputed: Whether it is the limit.
        note: What else changes; or, without ``seconds``, why it could not be timed.
        ready: Whether it has warmed up.
        seconds: Of a step, round by round.
        memory_mb: As in ``Trial``.
        setup_seconds: What the first turn took beyond the time of its steps.
    """

    name: str
    config: TrainConfig
    splits: Splits
    method: Method
    threads: int
    images: int
    precomputed: bool = False
    note: str = ""
    ready: bool = False
    seconds: list[float] = field(default_factory=list)
    memory_mb: float = 0.0
    setup_seconds: float = 0.0


class Lap(Watcher):
    """Times some steps after one that does not count. The device is waited for at both ends alone."""

    def __init__(self, steps: int) -> None:
        super().__init__(Clock(), 1 + steps)

    @property
    def seconds(self) -> float:
        """Mean seconds of a step."""
        return statistics.fmean(step.seconds for step in self.clock.steps[1:])

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: object) -> None:
        if self.clock.taken in (1, self.steps):
            synchronize(module.device)
        super().on_train_batch_end(trainer, module)


class Limit(Watcher):
    """Times forward, loss, backward and optimiser on views that are there already, with no loop around them."""

    def __init__(self, steps: int) -> None:
        super().__init__(Clock(), 1)  # the training itself need not go on
        self.count, self.seconds = steps, 0.0

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        assert isinstance(module, Method)
        if self.seconds:
            return
        views, optimizer = module.draw_views(batch, batch_idx), trainer.optimizers[0]
        module.draw_views = lambda *_: views  # type: ignore[method-assign, misc]
        module.log = lambda *_, **__: None  # type: ignore[method-assign]

        def take(steps: int) -> None:
            for _ in range(steps):
                for number in range(trainer.accumulate_grad_batches):
                    with trainer.precision_plugin.train_step_context():
                        loss = module.training_step(batch, batch_idx + number)
                    module.backward(loss)
                    module.on_after_backward()
                optimizer.step()
                optimizer.zero_grad()
                module.after_optimizer_step()

        take(1)
        self.seconds = seconds_of(lambda: take(self.count), module.device) / self.count
        del module.draw_views, module.log


def variants(bench: Bench, shares: Mapping[str, float], compiling: bool) -> tuple[list[Variant], list[tuple[str, str]]]:
    """Return what is timed in turns, and the settings that are not worth a trial, with the reason.

    The first three are the present settings twice and the limit.

    Args:
        bench: Where they are timed.
        shares: Part of a step that each phase takes.
        compiling: Whether to try ``trainer.compile``.
    """
    present, limit = (_variant(bench, Candidate(name, threads=bench.threads)) for name in ("", "limit"))
    limit.precomputed = True
    found, skipped = [present, dataclasses.replace(present, seconds=[]), limit], []
    if not (compiling or bench.config.trainer.compile):
        skipped.append(("trainer.compile=true", "compiling can take minutes; --compile tries it"))
    for candidate in candidates(bench.config, bench.splits, bench.device, compiling):
        share = sum(shares.get(phase, 0.0) for phase in candidate.touches)
        if candidate.touches and share < LEAST:
            names = " and ".join(candidate.touches)
            skipped.append((candidate.name, f"{names} take {100 * share:.1f} % of a step"))
            continue
        try:
            found.append(_variant(bench, candidate))
        except UserError as error:
            skipped.append((candidate.name, str(error)))
    return found, skipped


def _variant(bench: Bench, candidate: Candidate) -> Variant:
    config, splits, threads = bench.config, bench.splits, candidate.threads
    if candidate.resident:
        splits = dataclasses.replace(splits, pretrain=in_memory(splits, 16 * config.batch_size))
    elif threads is None:
        config = from_values(dataclasses.asdict(config), [candidate.name])
        if config.data != bench.config.data:
            splits = load_splits(config.data)
    bench.check_batch(config, splits)
    method, images = bench.build(config, splits), bench.images(config)
    return Variant(candidate.name, config, splits, method, threads or bench.threads, images, note=candidate.note)


def take_turns(bench: Bench, variants: Sequence[Variant], steps: int, bar: Any) -> None:
    """Time every variant in every round, each round from another one on; first each warms up, untimed."""
    bar.reset(1 + len(variants) * (ROUNDS + 1))
    bar.update()
    for number in range(ROUNDS + 1):
        start = number % len(variants)
        for variant in [*variants[start:], *variants[:start]]:
            bar.update()
            if number and not variant.ready:
                continue
            try:
                _time(bench, variant, steps)
            except (
                UserError,
                RuntimeError,
                MemoryError,
            ) as error:  # what does not fit or compile
                variant.ready, variant.note = False, " ".join(str(error).split())[:200]
                variant.seconds.clear()


def _time(bench: Bench, variant: Variant, steps: int) -> None:
    """Take one step that does not count, then some that do."""
    torch.set_num_threads(variant.threads)
    if not variant.splits.pretrain.resident:
        steps = max(steps, 4 * worker_count(variant.config.data))  # or batches that were fetched ahead hide a wait
    lap = (Limit if variant.precomputed else Lap)(steps)
    try:
        whole = seconds_of(lambda: bench.train(variant.config, variant.splits, variant.method, lap))
    finally:
        torch.set_num_threads(bench.threads)
    if not variant.ready:
        variant.ready, variant.setup_seconds = True, whole - (1 + steps) * lap.seconds
    else:
        variant.seconds.append(lap.seconds)
        variant.memory_mb = max(variant.memory_mb, lap.memory_mb)


def judge(variant: Variant, present: Variant, plain: Sequence[float], noise: float) -> Trial:
    """Return what a setting did.

    Args:
        variant: With the setting.
        present: Without it.
        plain: Seconds of a step without it, round by round.
        noise: As in ``Report``.
    """
    more = variant.images / present.images
    ratios = [now / then * more - 1 for now, then in zip(plain, variant.seconds, strict=True)]
    gain = statistics.median(ratios)
    return Trial(
        setting=variant.name,
        images_per_second=variant.images / statistics.median(variant.seconds),
        gain=gain,
        low=min(ratios),
        high=max(ratios),
        memory_mb=variant.memory_mb,
        setup_seconds=max(0.0, variant.setup_seconds - present.setup_seconds),
        recommended=gain > noise and min(ratios) > 0,
        note=variant.note,
    )
