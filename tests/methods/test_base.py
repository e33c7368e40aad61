"""What the base class does around a method's step: encoding, schedules, frozen parameters, checks before training."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from selfsup.augment import multi_crop
from selfsup.data import TrainLoader, load_splits
from selfsup.engine.training import train
from selfsup.errors import UserError
from selfsup.methods import Method, Parts
from selfsup.nn import BackboneConfig, build_backbone
from selfsup.optimization import OptimizerConfig, decay_groups
from selfsup.random import fold_in, seed_generators, uniform
from selfsup.types import Batch, StepOutput, View


class Regress(Method):
    """The least a method can be; it notes what the base class tells it."""

    view_count = (2, None)

    def __init__(self, parts: Parts, frozen_steps: int = 0) -> None:
        super().__init__(parts)
        self.head = nn.Linear(self.backbone.dim, 4)
        self.frozen_steps = frozen_steps
        self.seen: list[dict[str, Any]] = []

    def step(self, views: tuple[View, ...], batch: Batch) -> StepOutput:
        self.seen.append({"progress": self.progress, "head": self.head.weight.detach().clone()})
        return StepOutput(self.head(self.encode(views)).square().mean())

    def frozen_parameters(self) -> Iterator[nn.Parameter]:
        return iter(self.head.parameters() if self.trainer.global_step < self.frozen_steps else ())

    def after_optimizer_step(self) -> None:
        groups = self.trainer.optimizers[0].param_groups
        self.seen[-1].update(after=self.progress, decay=[group["weight_decay"] for group in groups])


def build(optimizer: OptimizerConfig, sizes: tuple[int, ...] = (32,), counts: tuple[int, ...] = (2,), **kwargs: Any):
    recipe = "simclr" if len(sizes) == 1 else "swav"
    backbone = build_backbone(BackboneConfig("resnet", width=4, blocks=[1, 1, 1, 1]), 3)
    return Regress(Parts(backbone, multi_crop(recipe, sizes, counts), optimizer, batch_size=16), **kwargs)


def run(method: Method, config: Any, epochs: int = 2) -> None:
    loader = TrainLoader(load_splits(config.data).pretrain, 16, 0)
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(method, loader)


def test_views_of_one_size_go_through_the_network_in_one_pass() -> None:
    torch.manual_seed(0)
    method = build(OptimizerConfig(), (32, 16), (2, 3))
    views = method.views(torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8))
    passes: list[Tensor] = []
    method.backbone.register_forward_pre_hook(lambda module, args: passes.append(args[0]))
    features = method.encode(views)
    assert [tuple(p.shape) for p in passes] == [(10, 3, 32, 32), (15, 3, 16, 16)]
    assert features.shape == (5, 5, 32)
    method.eval()  # without batch statistics the order alone decides
    one_by_one = torch.stack([method.backbone(view.image) for view in views])
    torch.testing.assert_close(method.encode(views), one_by_one)


def test_progress_counts_optimiser_steps(tiny_config: Callable[..., Any]) -> None:
    method = build(OptimizerConfig(lr=0.01))
    run(method, tiny_config())
    assert method.total_steps == 8
    assert [seen["progress"] for seen in method.seen] == [step / 8 for step in range(8)]
    assert [seen["after"] for seen in method.seen] == [step / 8 for step in range(8)]


def test_every_step_draws_its_own_numbers_and_the_same_ones_again(tiny_config: Callable[..., Any]) -> None:
    drawn: list[list[Tensor]] = []
    for _ in range(2):
        method = build(OptimizerConfig(weight_decay=0))
        numbers: list[Tensor] = []
        method.backbone.register_forward_hook(lambda *_, numbers=numbers: numbers.append(torch.rand(3)))
        torch.rand(5)  # whatever was drawn before
        run(method, tiny_config("simclr"), epochs=1)
        drawn.append(numbers)
    assert len(torch.unique(torch.cat(drawn[0]))) == 3 * len(drawn[0]) > 3
    assert torch.equal(torch.cat(drawn[0]), torch.cat(drawn[1]))
    torch.manual_seed(7)
    expected = torch.rand(3)
    seed_generators(7, torch.device("cpu"))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_device_is_seeded_too() -> None:
    device = torch.device("cuda", 0)
    torch.manual_seed(7)
    expected = torch.rand(3, device=device)
    seed_generators(7, device)
    assert torch.equal(torch.rand(3, device=device), expected)


def test_frozen_parameters_stay_to_the_bit_in_spite_of_momentum_and_decay(tiny_config: Callable[..., Any]) -> None:
    method = build(OptimizerConfig(lr=0.01, weight_decay=0.1, scaling="none"), frozen_steps=3)
    start = method.head.weight.detach().clone()
    run(method, tiny_config())
    heads = [seen["head"] for seen in method.seen]
    assert [torch.equal(head, start) for head in heads] == [True] * 4 + [False] * 4


def test_weight_decay_follows_its_cosine_and_spares_the_exempt(tiny_config: Callable[..., Any]) -> None:
    config = OptimizerConfig(name="adamw", lr=1e-4, weight_decay=0.04, final_weight_decay=0.4)
    method = build(config)
    exempt = [group["weight_decay"] for group in decay_groups(method, 0.04, True)]
    assert exempt == [0.04, 0.0]
    run(method, tiny_config())
    decays = [seen["decay"] for seen in method.seen]
    assert [d[1] for d in decays] == [0.0] * 8
    assert decays[0][0] == pytest.approx(0.04)
    assert decays[4][0] == pytest.approx(0.22)
    assert all(a[0] < b[0] < 0.4 for a, b in itertools.pairwise(decays))


@pytest.mark.parametrize("counts", ["[1]", "[3]"])
def test_a_wrong_number_of_views_stops_before_training(counts: str, tiny_config: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=r"augment\.counts.*SimCLR takes 2"):
        train(tiny_config("simclr", f"augment.counts={counts}"))


def test_a_method_that_needs_labels_says_so_before_training() -> None:
    class Supervised(Regress):
        needs_labels = True

    parts = Parts(
        build_backbone(BackboneConfig("resnet", width=4, blocks=[1, 1, 1, 1]), 3),
        multi_crop("simclr", (32,), (2,)),
        OptimizerConfig(),
        batch_size=16,
        labelled=False,
    )
    with pytest.raises(UserError, match="Supervised learns from labels"):
        Supervised(parts)


def test_further_callbacks_see_the_training(tiny_config: Callable[..., Any]) -> None:
    class Steps(pl.Callback):
        seen = 0

        def on_train_batch_end(self, *_: Any) -> None:
            self.seen += 1

    steps = Steps()
    train(tiny_config(), [steps])
    assert steps.seen == 8


def test_random_numbers_of_an_image_are_keyed_as_its_views_are_and_those_of_a_batch_are_common_to_ranks() -> None:
    method = build(OptimizerConfig(weight_decay=0))
    index = torch.tensor([4, 9, 2])
    method.seed_step(0)
    numbers = method.draw(index, view=0)(5)
    assert torch.equal(method.draw(index[1:], view=0)(5), numbers[1:])
    whole = method.draw_whole(local=3)(5)
    method.seed_step(1)  # a later batch of the epoch
    assert torch.equal(method.draw(index, view=0)(5), numbers)
    others = [method.draw(index, view=1)(5), method.draw_whole(local=3)(5)]
    method.epoch = 1
    method.seed_step(0)
    others += [method.draw(index, view=0)(5), whole, uniform(fold_in(fold_in(method.seed, 0), 0), index, 5)]
    together = torch.cat([numbers, *others]).flatten()
    assert together.unique().numel() == together.numel()
    assert whole.shape == (3 * method.world_size, 5)


@pytest.mark.parametrize(("clip_by", "expected"), [("all", 1e-3), ("module", 2**0.5 * 1e-3)])
def test_the_trainer_clips_gradients_as_the_optimizer_setting_says(
    clip_by: str, expected: float, tiny_config: Callable[..., Any]
) -> None:
    method = build(OptimizerConfig(lr=0.0, clip_by=clip_by))
    norms: list[float] = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
            gradients = [p.grad.flatten() for p in module.parameters() if p.grad is not None]
            norms.append(torch.cat(gradients).norm().item())

    loader = TrainLoader(load_splits(tiny_config().data).pretrain, 16, 0)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = pl.Trainer(
        max_steps=2, accelerator="cpu", devices=1, gradient_clip_val=1e-3, callbacks=[Watch()], **quiet
    )
    trainer.fit(method, loader)
    assert norms == pytest.approx([expected] * 2, rel=1e-2)
