"""What the ranks of a training step send each other: calls, bytes and milliseconds, counted with two gloo processes.

    python benchmarks/collectives.py [--methods simclr moco …] [--steps 7] [--out benchmarks/results]

Two processes of one thread each train the small preset of every method under DistributedDataParallel, a half of its
batch each. What goes through torch.distributed is counted with the bytes that a rank puts in: its part of a gather or
of a scattered sum, all of a reduced tensor. DDP's reduction of gradients is counted by a communication hook. torch has
SyncBatchNorm on GPUs only: layers and passes are counted by hooks, and the messages that it would send (forward a
gather of 2C+1 numbers, backward a sum of 2C) are sent after the step. What was counted is compared with the formulas
of ``scaling.py``, column "as computed".

Times: the step without others, both processes at once, in turns with the step of two; the calls of the loss in that,
which also wait for the other rank; and all messages once more, alone, after a barrier, beside what ``scaling.py`` makes
of them with the latency and rate of all-reduces of 4 bytes and of 4 MB.

Writes collectives.json, collectives-times.json and their .md to --out.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import multiprocessing
import statistics
import tempfile
import time
import types
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from measure import write
from scaling import FLOAT, Machines, Message, build, messages, seconds
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from selfsup.config import TrainConfig, load_config
from selfsup.data import Share, TrainLoader, load_splits
from selfsup.engine.training import build_method
from selfsup.methods import Method
from selfsup.optimization import build_optimizer
from selfsup.registry import methods

RANKS = 2
WRAPPED = ("all_gather", "reduce_scatter", "all_reduce", "all_to_all_single", "broadcast")
WARM = 2  # steps that do not count: in the first DDP learns the order of its buckets
LARGE = 2**20  # float32 numbers, to measure the rate
REPEATS = 20
#: Of the table of times, and what each is for.
COLUMNS = {"loss": ("loss", "shuffle"), "gradients": ("gradients",), "SyncBN": ("SyncBN",)}


@dataclass
class Step:
    """What one rank did in a step: messages in order, seconds in all and those spent inside calls that wait."""

    sent: list[Message] = field(default_factory=list)
    seconds: float = 0.0
    waited: float = 0.0


class Recorder:
    """Notes every call of torch.distributed's collectives while it is entered, and what SyncBatchNorm would send."""

    def __init__(self) -> None:
        self.step = Step()
        self.purpose = "loss"
        self.backward = False

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Wrap the functions for the time of the context."""
        originals = {name: getattr(dist, name) for name in WRAPPED}
        for name, original in originals.items():
            setattr(dist, name, self._wrap(name, original))
        try:
            yield
        finally:
            for name, original in originals.items():
                setattr(dist, name, original)

    def _wrap(self, name: str, original: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            tensor = args[1] if name in ("all_gather", "all_to_all_single") else args[0]
            if kwargs.get("async_op"):  # the hook's: it runs beside the backward pass and nobody waits here
                purpose = "gradients"
            else:
                purpose = "shuffle" if name == "all_to_all_single" else self.purpose
            self.step.sent.append(Message(purpose, name, tensor.nbytes, self.backward))
            start = time.perf_counter()
            result = original(*args, **kwargs)
            self.step.waited += time.perf_counter() - start
            return result

        return call

    def watch_batch_norm(self, method: Method) -> None:
        """Note each layer's pass, and its backward pass where there is one."""

        def passed(module: Any, inputs: Any, output: Tensor) -> None:
            if not module.training:
                return
            self.step.sent.append(Message("SyncBN", "all_gather", FLOAT * (2 * module.num_features + 1)))
            if output.requires_grad:
                message = Message("SyncBN", "all_reduce", FLOAT * 2 * module.num_features, backward=True)
                output.register_hook(lambda gradient: self.step.sent.append(message))

        for module in method.modules():
            if method.sync_batchnorm and isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.register_forward_hook(passed)


class _Forward(nn.Module):
    """Gives DDP a forward to wrap."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, batch: Any, batch_idx: int) -> Tensor:
        return self.method.training_step(batch, batch_idx)


def train(rank: int, ranks: int, config: TrainConfig) -> Iterator[Step]:
    """Train a method, in the group of processes where there are several ranks; yield what each step did."""
    pl.seed_everything(config.seed, verbose=False)
    splits = load_splits(config.data)
    method = build_method(config, splits, ranks)
    # in the middle of the training, when queues are in use
    trainer = types.SimpleNamespace(
        world_size=ranks, global_rank=rank, current_epoch=config.trainer.max_epochs // 2, global_step=0, barebones=False
    )
    method.trainer = trainer  # type: ignore[assignment]
    method.total_steps = 1000
    method.log = lambda *_, **__: None  # type: ignore[method-assign]
    forward: nn.Module = _Forward(method)
    recorder = Recorder()
    recorder.watch_batch_norm(method)
    if ranks > 1:
        ddp = DistributedDataParallel(forward, broadcast_buffers=False)
        ddp.register_comm_hook(dist.group.WORLD, allreduce_hook)  # DDP's own way, through torch.distributed
        forward = ddp
    optimizer = build_optimizer(method.param_groups(), config.optimizer, 1e-4)
    loader = TrainLoader(splits.pretrain, config.batch_size, config.seed, Share(rank, ranks))
    for number, batch in enumerate(itertools.cycle(loader)):
        recorder.step = Step()
        with recorder.recording(), contextlib.nullcontext() if ranks > 1 else nobody_else():
            start = time.perf_counter()
            optimizer.zero_grad()
            recorder.purpose, recorder.backward = "loss", False
            loss = forward(batch, number)
            recorder.backward = True
            loss.backward()
            method.on_after_backward()
            optimizer.step()
            method.after_optimizer_step()
            recorder.step.seconds = time.perf_counter() - start
        trainer.global_step += 1
        yield recorder.step


@contextlib.contextmanager
def nobody_else() -> Iterator[None]:
    """Let the process be a single one for the time of the context."""
    original = dist.is_initialized
    dist.is_initialized = lambda: False
    try:
        yield
    finally:
        dist.is_initialized = original


def total(sent: Sequence[Message]) -> Counter[Message]:
    """Return how often each message was sent; buckets of gradients are one message, however DDP cut them."""
    gradients = sum(message.size for message in sent if message.purpose == "gradients")
    rest = Counter(message for message in sent if message.purpose != "gradients")
    return rest + Counter([Message("gradients", "all_reduce", gradients, backward=True)])


def send(kind: str, size: int) -> float:
    """Send one message of a kind, as large as counted, and return its seconds."""
    mine = torch.zeros(size, dtype=torch.uint8)
    mine = mine.view(torch.float32) if size % FLOAT == 0 else mine
    ranks = dist.get_world_size()
    parts = [torch.empty_like(mine) for _ in range(ranks)]
    calls = {
        "all_gather": lambda: dist.all_gather(parts, mine),
        "reduce_scatter": lambda: dist.reduce_scatter(mine, parts),
        "all_reduce": lambda: dist.all_reduce(mine),
        "all_to_all_single": lambda: dist.all_to_all_single(parts[0], mine),
        "broadcast": lambda: dist.broadcast(mine, 0),
    }
    start = time.perf_counter()
    calls[kind]()
    return time.perf_counter() - start


def calibrate() -> Machines:
    """Measure the latency of a hop and the rate of a link: the fastest calls, those that other programs left alone."""
    times = {}
    for size, calls in ((FLOAT, 20), (FLOAT * LARGE, 1)):
        dist.barrier()
        times[size] = min(sum(send("all_reduce", size) for _ in range(calls)) / calls for _ in range(REPEATS))
    small, large = times.values()
    rate = FLOAT * LARGE / (large - small)
    return Machines(rate, rate, small / 2, small / 2)


def replay(sent: Sequence[Message]) -> dict[str, tuple[float, float]]:
    """Send a step's messages again, and nothing else; return the lowest and median seconds of each column."""
    found = {}
    for column, purposes in COLUMNS.items():
        chosen, times = [message for message in sent if message.purpose in purposes], []
        for _ in range(REPEATS):
            dist.barrier()
            times.append(sum(send(message.kind, message.size) for message in chosen))
        found[column] = (min(times), statistics.median(times))
    return found


def alone(config: TrainConfig) -> TrainConfig:
    """Return the settings of one process that has the images which a rank of two has."""
    config.batch_size //= RANKS
    settings: Any = config.method
    if hasattr(settings, "bn_groups"):
        settings.bn_groups = max(1, settings.bn_groups // RANKS)
    if hasattr(settings, "subbatch_size"):
        settings.subbatch_size = min(settings.subbatch_size, config.batch_size)
    return config


def settings_of(name: str) -> list[str]:
    """Return the small preset of a method, with few images."""
    return [f"experiment=small/{name}", "data.train_size=2000", "data.test_size=10"]


def measure(rank: int, names: Sequence[str], count: int, folder: str) -> list[dict[str, Any]]:
    """Measure methods; the work of one process."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", ".*broadcast_buffers.*")
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting_point", rank=rank, world_size=RANKS)
    found = []
    for name in tqdm(names, disable=rank > 0):
        by_itself = train(0, 1, alone(load_config(settings_of(name))))
        together = train(rank, RANKS, load_config(settings_of(name)))
        steps: dict[str, list[Step]] = {"alone": [], "step": []}
        for number in range(WARM + count):
            for key, trained in (("alone", by_itself), ("step", together)):
                dist.barrier()  # both processes take the same kind of step at once
                step = next(trained)
                if number >= WARM:
                    steps[key].append(step)
        sent = steps["step"][-1].sent
        medians = {key: statistics.median(step.seconds for step in taken) for key, taken in steps.items()}
        waited = statistics.median(step.waited for step in steps["step"])
        found.append({"sent": sent, **medians, "waited": waited, "machines": calibrate(), "replayed": replay(sent)})
    dist.barrier()
    dist.destroy_process_group()
    return found


def cell(sent: Sequence[Message], purpose: str, kind: str | None = None, backward: bool | None = None) -> str | None:
    """Return the calls and the kilobytes of some of a step's messages."""
    chosen = [m for m in sent if m.purpose == purpose and kind in (None, m.kind) and backward in (None, m.backward)]
    return f"{len(chosen)}: {sum(message.size for message in chosen) / 1e3:.4g}" if chosen else None


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=list(methods), default=list(methods))
    parser.add_argument("--steps", type=int, default=7, help="of each kind that are timed")
    parser.add_argument("--out", default="benchmarks/results")
    options = parser.parse_args()
    torch.set_num_threads(1)  # as in the processes, for the files' line about the hardware
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(RANKS, multiprocessing.get_context("spawn")) as pool,
    ):
        work = [pool.submit(measure, rank, options.methods, options.steps, folder) for rank in range(RANKS)]
        first, second = (future.result() for future in work)
    counts, times = [], []
    for name, one, other in zip(options.methods, first, second, strict=True):
        sent = one["sent"]
        config, method = build(settings_of(name))
        formulas = messages(config, method, config.batch_size // RANKS, RANKS)
        agrees = total(sent) == total(other["sent"]) == total(formulas)
        counts.append(
            {
                "method": name,
                "images": config.batch_size // RANKS,
                "gradients": cell(sent, "gradients"),
                "gather, forward": cell(sent, "loss", "all_gather"),
                "scattered sum, backward": cell(sent, "loss", "reduce_scatter", backward=True),
                "sum in the loss": cell(sent, "loss", "all_reduce"),
                "all-to-all": cell(sent, "shuffle"),
                "SyncBN, forward": cell(sent, "SyncBN", backward=False),
                "SyncBN, backward": cell(sent, "SyncBN", backward=True),
                "as computed": "yes" if agrees else "no",
            }
        )
        row: dict[str, Any] = {"method": name}
        for key, title in (("alone", "step alone"), ("step", "step of two"), ("waited", "waits in it")):
            row[title] = 1e3 * max(one[key], other[key])
        computed = 0.0
        for column, purposes in COLUMNS.items():
            both = zip(one["replayed"][column], other["replayed"][column], strict=True)
            lowest, median = (1e3 * max(pair) for pair in both)
            model = sum(seconds(m.kind, m.size, RANKS, one["machines"]) for m in formulas if m.purpose in purposes)
            row[column] = f"{lowest:.2g} ({median:.2g})" if model else None
            row[f"{column}, computed"] = 1e3 * model if model else None
            computed += 0.0 if column == "SyncBN" else 1e3 * model
        row["step of two, computed"] = row["step alone"] + computed
        times.append(row)
    latency = 1e6 * statistics.median(f["machines"].intra_latency for f in (*first, *second))
    rate = statistics.median(f["machines"].intra_rate for f in (*first, *second)) / 1e9
    protocol = (
        f"A training step of every small preset on {RANKS} gloo processes of one thread, for each rank. "
        "Cells are calls: kilobytes. Images are a rank's."
    )
    print(write(options.out, "collectives", counts, protocol))
    protocol = (
        f"Milliseconds; steps are the median of {options.steps}, of the slower of two ranks. The columns loss, "
        f"gradients and SyncBN are the messages alone: the fastest of {REPEATS} rounds, and in brackets their median. "
        f"SyncBN's are not in the step. Computed from {latency:.0f} µs a hop and {rate:.2g} GB/s, which the fastest "
        "all-reduces of 4 bytes and of 4 MB between the two gave (medians over the methods); a step of two is one "
        "alone and the messages."
    )
    print(write(options.out, "collectives-times", times, protocol))


if __name__ == "__main__":
    main()
