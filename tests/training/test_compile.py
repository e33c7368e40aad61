"""trainer.compile: the same values, the same keys, the same run after a resume, and a way back."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from selfsup.checkpoint import read_checkpoint
from selfsup.data import TrainLoader, load_splits
from selfsup.engine.compilation import compile_networks, evaluating, rehearse, repeated_blocks
from selfsup.engine.stop import Interrupted
from selfsup.engine.training import build_method, load_resumed_config, train
from selfsup.functional import nt_xent
from selfsup.methods import Method
from selfsup.nn import Backbone, BackboneConfig, build_backbone

#: One convolution a stage: as little as there is to compile.
SMALL = ["backbone=convnet", "backbone.width=4", "backbone.blocks=[1,1]", "online.every_epochs=2"]


class Fails:
    """A compiler's back end that cannot."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("no such instruction")


def state(run: Any) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = read_checkpoint(run)["state_dict"]
    return weights


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Choose the back end of ``torch.compile``; ``aot_eager`` traces everything and generates no code."""
    original = torch.compile

    def choose(name: Any) -> None:
        torch.compiler.reset()
        monkeypatch.setattr(torch, "compile", lambda f, *, dynamic, **_: original(f, dynamic=dynamic, backend=name))

    return choose


@pytest.mark.parametrize("method", ["simclr", "moco", "swav"])
def test_a_compiled_run_is_the_eager_run(
    method: str, tiny_config: Callable[..., Any], backend: Callable[[Any], None], capsys: pytest.CaptureFixture[str]
) -> None:
    backend("aot_eager")
    # BatchNorm takes out what a bias before it adds. The bias's gradient is what rounding leaves, which LARS makes as
    # large as any other where it adapts biases too.
    settings = [*SMALL, "optimizer.exclude_1d=true"]
    eager = state(train(tiny_config(method, *settings, run="eager")))
    compiled = state(train(tiny_config(method, *settings, "trainer.compile=true", run="compiled")))
    assert "trainer.compile: compiled" in capsys.readouterr().out
    assert compiled.keys() == eager.keys()
    for key, value in eager.items():
        torch.testing.assert_close(compiled[key], value, rtol=2e-4, atol=2e-5, msg=key)


def test_generated_code_has_the_values_and_gradients_of_the_written(tiny_config: Callable[..., Any]) -> None:
    torch.compiler.reset()
    config = tiny_config("simclr", *SMALL, "backbone.blocks=[1]")
    splits = load_splits(config.data)
    images = torch.randn(32, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    results = []
    for compiled in (False, True):
        torch.manual_seed(0)
        method = build_method(config, splits).double()
        if compiled:
            assert len(compile_networks(method)) == 2  # backbone and head
        output = method.head(method.backbone(images))
        nt_xent(*output.chunk(2), 0.1).backward()
        gradients = {name: p.grad for name, p in method.named_parameters() if p.grad is not None}
        results.append((output.detach(), gradients, dict(method.named_buffers())))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)
    assert results[0][1], "there are gradients to compare"


def test_a_resumed_compiled_run_is_the_uninterrupted_one(
    tiny_config: Callable[..., Any], backend: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend("aot_eager")
    settings = [*SMALL, "trainer.compile=true"]
    whole = train(tiny_config("swav", *settings, run="whole"))
    original = Method.training_step

    def step(self: Any, batch: Any, batch_idx: int) -> Any:
        if self.trainer.global_step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(Method, "training_step", step)
        with pytest.raises(Interrupted) as stopped:
            train(tiny_config("swav", *settings, run="parts"))
    parts = stopped.value.checkpoint.parent.parent
    train(load_resumed_config([f"resume={parts}"]))
    one, other = state(whole), state(parts)
    assert one.keys() == other.keys()
    assert [key for key in one if not torch.equal(one[key], other[key])] == []


@pytest.mark.parametrize("method", ["simclr", "moco"])
def test_a_failure_leaves_the_run_as_it_is_and_says_so(
    method: str, tiny_config: Callable[..., Any], backend: Callable[[Any], None], capsys: pytest.CaptureFixture[str]
) -> None:
    plain = state(train(tiny_config(method, *SMALL, run="plain")))
    backend(Fails())
    fallen = state(train(tiny_config(method, *SMALL, "trainer.compile=true", run="fallen")))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("trainer.compile")]
    assert "train as they are" in line
    assert "no such instruction" in line
    assert plain.keys() == fallen.keys()
    assert [key for key in plain if not torch.equal(plain[key], fallen[key])] == []


@pytest.mark.parametrize("method", ["swav", "dino", "moco", "nnclr"])
def test_a_rehearsal_leaves_no_trace(method: str, tiny_config: Callable[..., Any]) -> None:
    config = tiny_config(method)
    torch.manual_seed(0)
    splits = load_splits(config.data)
    subject = build_method(config, splits)
    trainer = pl.Trainer(max_epochs=1, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    trainer.strategy.connect(subject)
    subject.trainer = trainer
    batch = next(iter(TrainLoader(splits.pretrain, config.batch_size, 0)))
    before = {key: value.clone() for key, value in subject.state_dict().items()}
    random = torch.get_rng_state()
    rehearse(subject, batch, 0, contextlib.nullcontext())
    assert torch.equal(torch.get_rng_state(), random)
    assert [key for key, value in subject.state_dict().items() if not torch.equal(value, before[key])] == []
    assert all(p.grad is None for p in subject.parameters())
    if method == "swav":
        assert subject.count_stored() == 0


def test_heads_and_momentum_copies_are_compiled_and_the_views_are_not(tiny_config: Callable[..., Any]) -> None:
    config = tiny_config("moco", *SMALL)
    method = build_method(config, load_splits(config.data))
    parts = compile_networks(method)
    copy_of_backbone, copy_of_head = method.key_encoder.module
    assert {id(p) for p in parts} == {id(m) for m in (method.backbone, method.head, copy_of_backbone, copy_of_head)}


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_layers_take_their_fusible_form_on_a_cpu(device: str, tiny_config: Callable[..., Any]) -> None:
    config = tiny_config("simclr", *SMALL)
    method = build_method(config, load_splits(config.data)).to(device)
    compile_networks(method)
    layers = [m for m in method.backbone.modules() if isinstance(m, nn.BatchNorm2d | nn.ReLU)]
    assert layers
    assert {"forward" in vars(layer) for layer in layers} == {device == "cpu"}


@pytest.mark.parametrize(("width", "capability", "bits"), [(4, "AVX512", 256), (4, "AVX2", None), (16, "AVX512", None)])
def test_narrow_layers_get_vectors_that_they_fill(
    width: int,
    capability: str,
    bits: int | None,
    tiny_config: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = tiny_config("simclr", *SMALL, f"backbone.width={width}")
    method = build_method(config, load_splits(config.data))
    chosen = []
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch, "compile", lambda f, *, options, **_: chosen.append(options) or f)
    compile_networks(method)
    *backbone, head = (None if options is None else options["cpp.simdlen"] for options in chosen)
    assert set(backbone) == {bits}
    assert head is None


@pytest.mark.parametrize(
    ("name", "count"), [("vit_tiny_patch16_224", 12), ("resnet50", 16), ("resnet18", 0), ("convnet", 0)]
)
def test_only_networks_that_repeat_themselves_are_compiled_in_blocks(name: str, count: int) -> None:
    backbone = build_backbone(BackboneConfig(name, blocks=[1, 2]), 3)
    assert len(repeated_blocks(backbone)) == count


def test_equal_blocks_share_one_compilation(backend: Callable[[Any], None]) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.layer(x).relu()

    graphs: list[Any] = []

    def count(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    class Network(nn.Module):
        num_features = 4

        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.Sequential(*(Block() for _ in range(12)))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.blocks(x)

    backend(count)
    holder = nn.Module()
    holder.backbone = Backbone(Network(), 3)
    x = torch.randn(2, 4, requires_grad=True)  # as the later blocks' inputs are
    expected = holder.backbone(x)
    assert len(compile_networks(holder)) == 12  # type: ignore[arg-type]
    torch.testing.assert_close(holder.backbone(x), expected)
    assert len(graphs) == 1
    with evaluating():
        holder.backbone(torch.randn(3, 4))  # another shape would be compiled anew
    assert len(graphs) == 1
