"""A SimCLR training step end to end: ours, the limit that precomputed views set, and the ways that others go.

    python benchmarks/steps.py [--width 16] [--batch 128] [--threads 2] [--precision 32-true] [--device auto]

Contenders are processes that take turns: in every round each runs a few steps that do not count, which also use up what
its loader has prepared while it stood still, and then the steps that are timed. All have the ResNet of 2-2-2-2 blocks
with a small stem, a projection head of two layers, 32 pixels, SGD, and views of one strength (crop 0.2 to 1, flip,
jitter 0.4 0.4 0.4 0.1 with probability 0.8, grey 0.2, no blur).

- ours: ``selfsup train`` as it is, online evaluation apart; compiled: with trainer.compile; deterministic: with
  trainer.deterministic=error
- limit: the same forward, backward and optimiser on views made beforehand; no Lightning, no loader
- lightly: its SimCLR example: SimCLRTransform in a DataLoader with 2 workers, its head and loss, Lightning's Trainer
- kornia: its AugmentationSequential on the batch in a plain loop
- solo-learn: its transform in the plain loop, in a DataLoader with 2 workers; its crop is bicubic

The last three pass the two views through the network one after the other, as lightly's example does; ours together.
Writes steps-….json and .md to --out.
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from measure import summary, synchronize, write
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.functional import to_pil_image

from selfsup.config import load_config
from selfsup.data import TrainLoader, load_splits
from selfsup.engine.environment import keep_memory
from selfsup.engine.training import build_method, train
from selfsup.functional import nt_xent
from selfsup.methods import Method
from selfsup.nn import build_backbone, projection_head
from selfsup.optimization import build_optimizer

SIDE = 32
JITTER = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
EPOCHS = 10**6  # the parent ends a contender
KEPT_BATCHES = 4  # of precomputed views


class Pace:
    """Runs a contender's steps in the turns that the parent gives. Called before every step."""

    def __init__(self, parent: Connection) -> None:
        self.parent = parent
        self.done, self.started = 0, 0.0
        self.warm, self.timed = parent.recv()

    def __call__(self) -> None:
        if self.done == self.warm + self.timed:
            synchronize()
            self.parent.send(time.perf_counter() - self.started)
            turn = self.parent.recv()
            if turn is None:
                os._exit(0)
            (self.warm, self.timed), self.done = turn, 0
        if self.done == self.warm:
            synchronize()
            self.started = time.perf_counter()
        self.done += 1


def configuration(options: argparse.Namespace, *more: str) -> Any:
    """Return our settings of the step."""
    override = {
        "scale": [0.2, 1.0],
        "interpolation": "bilinear",
        "jitter_p": 0.8,
        "gray_p": 0.2,
        "blur_p": 0.0,
        **JITTER,
    }
    values = ",".join(f"{key}: {value}" for key, value in override.items())
    return load_config(
        [
            *("method=simclr", "method.head_layers=2", "backbone=resnet_narrow", "augment=simclr", "optimizer=sgd"),
            *("optimizer.lr=0.06", "optimizer.scaling=none", "optimizer.exclude_1d=false"),
            *("data=shapes", f"data.train_size={options.images}", "data.test_size=10", f"data.image_size={SIDE}"),
            f"backbone.width={options.width}",
            f"augment.override={{{values}}}",
            f"batch_size={options.batch}",
            f"trainer.max_epochs={EPOCHS}",
            f"trainer.precision={options.precision}",
            f"trainer.accelerator={options.device}",
            *("trainer.devices=1", "online.every_epochs=0", f"trainer.checkpoint_every_epochs={EPOCHS}"),
            f"run_dir={tempfile.mkdtemp()}/run",
            *more,
        ]
    )


def device_of(options: argparse.Namespace) -> torch.device:
    """Return where the plain loops run."""
    cuda = options.device == "gpu" or (options.device == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if cuda else "cpu")


def autocast(options: argparse.Namespace) -> torch.autocast:
    """Return the context of a forward pass of the plain loops."""
    return torch.autocast(device_of(options).type, torch.bfloat16, enabled=options.precision == "bf16-mixed")


def ours(options: argparse.Namespace, pace: Pace, *more: str) -> None:
    """Train with everything that ``selfsup train`` does around a step."""
    Method.on_train_batch_start = lambda self, batch, batch_idx: pace()  # type: ignore[method-assign]
    train(configuration(options, *more))


def compiled(options: argparse.Namespace, pace: Pace) -> None:
    """The same with compiled networks."""
    ours(options, pace, "trainer.compile=true")


def deterministic(options: argparse.Namespace, pace: Pace) -> None:
    """The same with deterministic operations."""
    ours(options, pace, "trainer.deterministic=error")


def limit(options: argparse.Namespace, pace: Pace) -> None:
    """Our network, loss and optimiser on views that are there already."""
    keep_memory()  # as a training does
    config, device = configuration(options), device_of(options)
    splits = load_splits(config.data)
    method = build_method(config, splits).to(device)
    loader = iter(TrainLoader(splits.pretrain, options.batch, 0))
    ready = []
    for _, batch in zip(range(KEPT_BATCHES), loader, strict=False):
        ready.append((method.views(batch.image.to(device), 0, batch.index), batch))
    optimizer = build_optimizer(method.param_groups(), config.optimizer, config.optimizer.lr)
    while True:
        for views, batch in ready:
            pace()
            with autocast(options):
                loss = method.step(views, batch).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


class Pictures(Dataset[Any]):
    """The training images as the transforms of others take them."""

    def __init__(self, images: Tensor, transform: Callable[[Any], Any]) -> None:
        self.pictures, self.transform = [to_pil_image(image) for image in images], transform

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, item: int) -> tuple[Any, int]:
        return self.transform(self.pictures[item]), 0


def pictures(options: argparse.Namespace, transform: Callable[[Any], Any]) -> DataLoader[Any]:
    """Return the loader of lightly's example: 2 workers, shuffled."""
    data = load_splits(configuration(options).data).pretrain
    dataset = Pictures(data.read(torch.arange(len(data))), transform)
    # workers begin as they would in a program of its own; here, in a spawned process, they would be spawned too
    return DataLoader(
        dataset, options.batch, shuffle=True, drop_last=True, num_workers=2, multiprocessing_context="fork"
    )


def network(options: argparse.Namespace) -> nn.Module:
    """Return the backbone alone, in torch's usual memory format."""
    return build_backbone(configuration(options).backbone, 3)


def lightly(options: argparse.Namespace, pace: Pace) -> None:
    """Train as lightly's example does."""
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead
    from lightly.transforms import SimCLRTransform

    class SimCLR(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = network(options)
            self.projection_head = SimCLRProjectionHead(self.backbone.dim, self.backbone.dim, 128)
            self.criterion = NTXentLoss(temperature=0.1)

        def forward(self, x: Tensor) -> Any:
            return self.projection_head(self.backbone(x).flatten(start_dim=1))

        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            pace()

        def training_step(self, batch: Any, batch_index: int) -> Any:
            x0, x1 = batch[0]
            loss = self.criterion(self.forward(x0), self.forward(x1))
            self.log("train_loss", loss)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.06)

    names = {"cj_bright": "brightness", "cj_contrast": "contrast", "cj_sat": "saturation", "cj_hue": "hue"}
    strengths = {theirs: JITTER[name] for theirs, name in names.items()}
    transform = SimCLRTransform(input_size=SIDE, min_scale=0.2, gaussian_blur=0.0, **strengths)
    trainer = pl.Trainer(
        max_epochs=EPOCHS,
        devices=1,
        accelerator=options.device,
        precision=options.precision,
        default_root_dir=tempfile.mkdtemp(),
    )
    trainer.fit(SimCLR(), pictures(options, transform))


def plain_loop(options: argparse.Namespace, pace: Pace, views: Iterator[tuple[Tensor, Tensor]]) -> None:
    """Train on pairs of views without any framework, one view after the other."""
    device = device_of(options)
    backbone = network(options)
    model = nn.Sequential(backbone, projection_head([backbone.dim, backbone.dim, 128], batch_norm=True)).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.06)
    while True:
        pace()
        x0, x1 = next(views)
        with autocast(options):
            loss = nt_xent(model(x0), model(x1), 0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def kornia(options: argparse.Namespace, pace: Pace) -> None:
    """Kornia's augmentations of whole batches of resident images."""
    import kornia.augmentation as K

    data, device = load_splits(configuration(options).data).pretrain, device_of(options)
    images = data.read(torch.arange(len(data))).to(device)
    sequence = K.AugmentationSequential(
        K.RandomResizedCrop((SIDE, SIDE), scale=(0.2, 1.0)),
        K.RandomHorizontalFlip(),
        K.ColorJitter(*JITTER.values(), p=0.8),
        K.RandomGrayscale(p=0.2),
        K.Normalize(torch.tensor([0.5] * 3), torch.tensor([0.2] * 3)),
        data_keys=["input"],
    )

    def views() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            batch = images[torch.randint(len(images), (options.batch,), device=device)].float() / 255
            yield sequence(batch), sequence(batch)

    plain_loop(options, pace, views())


def solo_learn(options: argparse.Namespace, pace: Pace) -> None:
    """solo-learn's transform; one file of it is read, as the package imports more than this needs."""
    found = importlib.util.find_spec("solo")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError("No module named 'solo'")
    file = Path(found.submodule_search_locations[0]) / "utils" / "pretrain_dataloader.py"
    spec = importlib.util.spec_from_file_location("solo_pretrain_dataloader", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    transform = module.ImagenetTransform(**JITTER, gaussian_prob=0.0, min_scale=0.2, crop_size=SIDE)
    loader = pictures(options, lambda image: [transform(image) for _ in range(2)])
    device = device_of(options)

    def views() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            for (x0, x1), _ in loader:
                yield x0.to(device), x1.to(device)

    plain_loop(options, pace, views())


CONTENDERS: dict[str, Callable[[argparse.Namespace, Pace], None]] = {
    "ours": ours,
    "compiled": compiled,
    "deterministic": deterministic,
    "limit": limit,
    "lightly": lightly,
    "kornia": kornia,
    "solo-learn": solo_learn,
}


def contender(name: str, options: argparse.Namespace, parent: Connection) -> None:
    """Run one contender; the target of a process."""
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 progress bars are drawn, and go nowhere
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    try:
        CONTENDERS[name](options, Pace(parent))
    except Exception as error:
        parent.send(f"{type(error).__name__}: {error}")


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=16, help="of the ResNet's first stage; 64 is a ResNet-18")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--precision", choices=("32-true", "bf16-mixed"), default="32-true")
    parser.add_argument("--device", choices=("auto", "cpu", "gpu"), default="auto")
    parser.add_argument("--images", type=int, default=5120)
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--warm", type=int, default=4, help="steps of a turn that do not count")
    parser.add_argument("--steps", type=int, default=3, help="steps of a turn that are timed")
    parser.add_argument("--contenders", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS))
    parser.add_argument("--out", default="runs/bench")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    context = multiprocessing.get_context("spawn")
    running: dict[str, Connection] = {}
    first: dict[str, float] = {}
    for name in options.contenders:
        mine, theirs = context.Pipe()
        context.Process(target=contender, args=(name, options, theirs)).start()
        start = time.perf_counter()
        mine.send((2, 1))  # imports, data, the first steps
        answer = mine.recv()
        if isinstance(answer, str):
            print(f"{name} is left out: {answer}", flush=True)
            continue
        running[name], first[name] = mine, time.perf_counter() - start
    seconds: dict[str, list[float]] = {name: [] for name in running}
    for turn in range(options.rounds):
        for name in running if turn % 2 == 0 else reversed(running):
            running[name].send((options.warm, options.steps))
            seconds[name].append(running[name].recv() / options.steps)
    for connection in running.values():
        connection.send(None)
    protocol = (
        f"SimCLR, ResNet 2-2-2-2 of width {options.width}, small stem, {SIDE} px, batch {options.batch}, "
        f"{options.precision}, {options.threads} threads, {device_of(options).type}; {options.rounds} rounds in turn, "
        f"{options.steps} steps timed after {options.warm} that are not. ms: median (lowest to highest) of the rounds."
    )
    medians = {name: summary(values)[0] for name, values in seconds.items()}
    rows = []
    for name, values in seconds.items():
        median, low, high = summary(values)
        row: dict[str, Any] = {
            "contender": name,
            "ms a step": round(1e3 * median, 1),
            "range": f"{1e3 * low:.1f} to {1e3 * high:.1f}",
            "images/s": round(options.batch / median),
        }
        if "lightly" in medians:
            row["times lightly"] = round(medians["lightly"] / median, 2)
        if "limit" in medians:
            row["share of the limit"] = round(medians["limit"] / median, 3)
        row["seconds to the third step"] = round(first[name], 1)
        rows.append(row)
    device = device_of(options).type
    print(write(options.out, f"steps-{device}-width{options.width}-{options.precision}", rows, protocol))
    if {"ours", "compiled"} <= medians.keys():
        cost, gain = first["compiled"] - first["ours"], medians["ours"] - medians["compiled"]
        pays = f"pays after {cost / gain:.0f} steps" if gain > 0 else "does not pay"
        print(f"Compiling takes {cost:.0f} s, saves {1e3 * gain:.1f} ms a step and {pays}.")


if __name__ == "__main__":
    main()
