"""Training on from weights that exist: what stays to the bit, what is held, what is kept and said, and resuming."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from states import assert_same_state
from tiny import TINY, TINY_METHOD, tiny
from torch import Tensor

from selfsup.checkpoint import INFO, read_checkpoint
from selfsup.commands.transfer import transfer
from selfsup.config import load_config
from selfsup.data import load_splits
from selfsup.engine.evaluation import evaluate
from selfsup.engine.stop import Interrupted
from selfsup.engine.training import build_method, load_resumed_config, train
from selfsup.errors import UserError
from selfsup.eval import read_results
from selfsup.methods import Anchor, Method
from selfsup.nn import Backbone, BackboneConfig, build_backbone
from selfsup.opened import load_backbone, open_network
from selfsup.registry import methods
from selfsup.report.comparison import read_table
from selfsup.report.lines import result_table
from selfsup.types import height_width

RESNET = BackboneConfig("resnet", width=4, blocks=[1, 1, 1, 1], stem_stride=2)
VIT = BackboneConfig(
    "vit_tiny_patch16_224", False, kwargs={"depth": 1, "embed_dim": 12, "num_heads": 2, "patch_size": 8}
)
SHORT = ["data.train_size=36", "data.test_size=4", "online.every_epochs=0"]


def source(folder: Path, config: BackboneConfig = RESNET) -> Path:
    """A checkpoint with weights and statistics that no initialisation gives."""
    torch.manual_seed(11)
    backbone = build_backbone(config, 3, image_sizes=[32])
    if config is RESNET:
        backbone.train()
        for _ in range(3):
            backbone(torch.rand(8, 3, 32, 32) + 0.3)
    values = {"backbone": vars(config), "method": {"name": "simclr"}, "data": {"name": "shapes", "image_size": 32}}
    info = {"config": values, "in_channels": 3, "mean": [0.5] * 3, "std": [0.5] * 3, "epochs_done": 1}
    info["image_sizes"] = [32]
    state = {f"backbone.{key}": value for key, value in backbone.state_dict().items()}
    path = folder / f"source-{config.name}.ckpt"
    torch.save({INFO: info, "state_dict": state}, path)
    return path


def parts(run: Path, prefix: str = "backbone.network.") -> dict[str, Tensor]:
    state = read_checkpoint(run)["state_dict"]
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> set[str]:
    return {key for key in one.keys() & other.keys() if torch.equal(one[key], other[key])}


def test_frozen_layers_stay_to_the_bit_with_their_statistics_in_the_momentum_encoder_too(
    tiny_config: Callable[..., Any], tmp_path: Path
) -> None:
    start = source(tmp_path)
    settings = [f"backbone.from={start}", "backbone.freeze=conv1,bn1,layer1.*.bn1", "optimizer.weight_decay=0.1"]
    run = train(tiny_config("moco", *SHORT, *settings))
    before = {k.removeprefix("network."): v for k, v in load_backbone(start).state_dict().items()}
    for prefix in ("backbone.network.", "key_encoder.module.0.network."):
        found = parts(run, prefix)
        assert found.keys() == before.keys()
        kept = {key for key in before if key.startswith(("conv1.", "bn1.", "layer1.0.bn1."))}
        assert len(kept) == 11
        # nothing else stays but what starts at the value that no gradient reaches
        assert same(found, before) == kept
    content = read_checkpoint(run)
    trained = sum(p.requires_grad for p in Method.parameters(build_method(*built(tiny_config, start, settings))))
    assert len(content["optimizer_states"][0]["state"]) == trained
    held = json.loads((run / "environment.json").read_text())["held"]
    assert set(held["frozen"]) == {key for key in kept if key.endswith(("weight", "bias"))}
    frozen = sum(before[key].numel() for key in held["frozen"])
    assert held["weights"] - held["learning"] == frozen


def built(tiny_config: Callable[..., Any], start: Path, settings: list[str]) -> tuple[Any, Any]:
    config = tiny_config("moco", *SHORT, *settings, run="other")
    return config, load_splits(config.data)


@pytest.mark.parametrize("method", ["byol", "dino"])
def test_heads_are_warmed_up_before_the_backbone_moves(
    method: str, tiny_config: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = source(tmp_path)
    before = {k.removeprefix("network."): v for k, v in load_backbone(start).state_dict().items()}
    settings = [f"backbone.from={start}", "backbone.freeze_epochs=1", "optimizer.weight_decay=0.1"]
    settings += ["trainer.keep_every_epochs=1"]
    run = train(tiny_config(method, *SHORT, *settings))
    first = run / "checkpoints" / "epoch-0001.ckpt"
    teacher = "target.module.0.network." if method == "byol" else "teacher.module.0.network."
    for prefix in ("backbone.network.", teacher):
        assert same(parts(first, prefix), before) == before.keys()
        assert "conv1.weight" not in same(parts(run, prefix), before)
        assert "bn1.running_mean" not in same(parts(run, prefix), before)
    head = "projector" if method == "byol" else "head"
    heads = [parts(path, f"{head}.") for path in (run / "start", first, run)]
    assert heads[0] == {}  # a start has a backbone alone
    moved = [key for key in heads[1] if key.endswith("weight") and key not in same(heads[1], heads[2])]
    assert moved
    assert not any(key.endswith("momentum_buffer") for key in read_checkpoint(first)["state_dict"])
    # what a single process does not compute, several drop: the weights are the same
    monkeypatch.setattr("selfsup.nn.backbone.world", lambda: object())
    assert_same_state(run, train(tiny_config(method, *SHORT, *settings, run="ranks")))


def test_in_a_loop_of_one_s_own_heads_are_warmed_up_too() -> None:
    from selfsup.methods import SimCLR

    torch.manual_seed(0)
    method = SimCLR(build_backbone(RESNET, 3), image_size=32, batch_size=8, output_dim=8)
    method.backbone.freeze_epochs = 1
    optimizer = torch.optim.SGD(method.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    before = {key: value.clone() for key, value in method.backbone.state_dict().items()}
    for epoch in (0, 0, 1):
        method.epoch = epoch
        optimizer.zero_grad()
        method(torch.rand(8, 3, 32, 32)).backward()
        optimizer.step()
        assert len(same(before, method.backbone.state_dict())) == (len(before) if epoch == 0 else 0), epoch


def move_away(method: Any) -> None:
    """Let the backbone differ from that at the start, also where evaluation mode makes no difference."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for weight in method.backbone.parameters():
            weight += 0.5 * weight.std(correction=0) * torch.randn(weight.shape, generator=generator)


@pytest.mark.parametrize(
    ("method", "kind"), [(method, ("cosine", "gram")[number % 2]) for number, method in enumerate(methods)]
)
def test_every_method_is_held_by_an_anchor_or_says_that_it_cannot_be(method: str, kind: str) -> None:
    words = [*tiny(method), f"backbone.anchor={kind}"]
    config = load_config([*words, "backbone.anchor_weight=0.5"])
    torch.manual_seed(3)
    built = build_method(config, load_splits(config.data))
    images = torch.rand(16, 3, *height_width(config.data.image_size), generator=torch.Generator().manual_seed(1))
    index, label = load_splits(config.data).pretrain.index[:16], torch.arange(16) % 4
    move_away(built)
    passes: list[Any] = []
    original = Anchor.forward

    def noted(self: Anchor, seen: Any) -> Tensor:
        passes.extend(seen)
        return original(self, seen)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Anchor, "forward", noted)
        torch.manual_seed(5)
        try:
            held = built(images, index, label)
        except UserError as error:
            assert "leave backbone.anchor out" in str(error)  # noqa: PT017 either is right
            return
    assert built.anchor is not None
    assert all(not p.requires_grad for p in built.anchor.parameters())
    assert not any(module.training for module in built.anchor.modules())
    rows, originals = [], []
    for entry, shown, found in passes:
        with torch.no_grad():
            again = (
                built.anchor.original.forward_dense(shown) if entry == "forward_dense" else built.anchor.original(shown)
            )
        found = found[0] if entry == "forward_both" else found
        rows += (found if found.ndim == 2 else found.mean((2, 3))).detach().double().tolist()
        originals += (again if again.ndim == 2 else again.mean((2, 3))).double().tolist()
    expected = distance(rows, originals, kind)
    assert expected > 1e-4
    config.backbone.anchor = None
    torch.manual_seed(3)
    free = build_method(config, load_splits(config.data))
    move_away(free)
    torch.manual_seed(5)
    alone = free(images, index, label)
    assert float(held.detach()) - float(alone.detach()) == pytest.approx(0.5 * expected, rel=2e-3, abs=2e-6)
    held.backward()
    assert any(p.grad is not None and bool(p.grad.any()) for p in built.backbone.parameters())
    assert vars(built.backbone).keys() == vars(free.backbone).keys()  # nothing is left of the watching


def distance(rows: list[list[float]], originals: list[list[float]], kind: str) -> float:
    def cosine(a: list[float], b: list[float]) -> float:
        lengths = (sum(x * x for x in a) * sum(x * x for x in b)) ** 0.5
        return sum(x * y for x, y in zip(a, b, strict=True)) / max(lengths, 1e-12)

    count = range(len(rows))
    if kind == "cosine":
        return sum(1 - cosine(rows[i], originals[i]) for i in count) / len(rows)
    pairs = ((cosine(rows[i], rows[j]) - cosine(originals[i], originals[j])) ** 2 for i in count for j in count)
    return sum(pairs) / len(rows) ** 2


def test_a_network_that_has_not_moved_is_not_pulled() -> None:
    torch.manual_seed(0)
    backbone = build_backbone(RESNET, 3)
    backbone.eval()
    import copy

    for kind in ("cosine", "gram"):
        anchor = Anchor(copy.deepcopy(backbone), kind, 1.0)
        images = torch.rand(6, 3, 32, 32)
        value = anchor([("forward", images, backbone(images))])
        assert float(value.detach()) == pytest.approx(0, abs=1e-6)
        backbone.zero_grad()
        value.backward()
        assert max(float(p.grad.abs().max()) for p in backbone.parameters() if p.grad is not None) < 1e-5


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    original = Method.training_step
    sent = False

    def step(self: Any, batch: Any, batch_idx: int) -> Any:
        nonlocal sent
        if self.trainer.global_step == steps - 1 and not sent:
            sent = True
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(Method, "training_step", step)


HELD = [
    ("moco", RESNET, ["backbone.freeze=conv1,bn1", "backbone.freeze_epochs=1", "backbone.anchor=gram"]),
    ("dino", VIT, ["backbone.adapter_rank=2", "backbone.freeze_epochs=1", "backbone.anchor=cosine"]),
]


@pytest.mark.parametrize(("method", "network", "settings"), HELD)
def test_resumed_equals_uninterrupted_and_the_source_is_not_read_again(
    method: str,
    network: BackboneConfig,
    settings: list[str],
    tiny_config: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Stopped in the epoch in which the backbone rests, and in the one in which it learns; four steps each."""
    start = source(tmp_path, network)
    words = [f"backbone.from={start}", *settings, "online.every_epochs=2"]
    words += ["optimizer=adamw"] if network is VIT else []

    def config(run: str) -> Any:
        own = [f"method={method}", *TINY_METHOD[method], f"run_dir={tmp_path / run}"]
        kept = [word for word in TINY if not word.startswith("backbone")]
        return load_config([*own, *kept, *words])

    whole = train(config("whole"))
    expected = list(csv.DictReader((whole / "metrics.csv").open()))
    assert {"train/anchor"} <= {key for row in expected for key, value in row.items() if value}
    stopped = []
    for steps in (2, 6):
        with monkeypatch.context() as patch:
            stop_after(patch, steps)
            with pytest.raises(Interrupted) as signalled:
                train(config(f"parts{steps}"))
        stopped.append(signalled.value.checkpoint.parent.parent)
    start.unlink()
    for run in stopped:
        train(load_resumed_config([f"resume={run}"]))
        assert_same_state(whole, run)
        assert list(csv.DictReader((run / "metrics.csv").open())) == expected
    if network is VIT:
        check_adapted(whole)


def check_adapted(run: Path) -> None:
    """Its base weights stayed, and it opens as a plain network that gives what the adapted one gave."""
    begun, trained = open_network(run / "start").network, open_network(run).network
    assert isinstance(begun, Backbone)
    assert isinstance(trained, Backbone)
    assert not any("adapter" in key for key in trained.state_dict())
    prefix = f"{read_checkpoint(run)[INFO]['backbone']}.network."
    held = parts(run, prefix)
    assert prefix == "teacher.module.0.network."
    before = begun.network.state_dict()
    assert same(held, before) == before.keys()
    layers = {f"blocks.0.{name}.weight" for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")}
    after = trained.network.state_dict()
    assert before.keys() - same(before, after) == layers
    for key in layers:
        name = key.removesuffix("weight")
        added = held[f"{name}adapter_b"].double() @ held[f"{name}adapter_a"].double()
        torch.testing.assert_close(after[key].double(), before[key].double() + added, rtol=1e-5, atol=1e-6)


def test_the_original_weights_are_a_row_of_every_evaluation(
    tiny_config: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    start = source(tmp_path)
    run = train(tiny_config("simclr", f"backbone.from={start}", "online.every_epochs=0", run="a"))
    start.unlink()
    words = [f"checkpoint={run}", "eval.knn.k=[3]", "eval.figures=false"]
    own, before = evaluate(words, ["knn"], progress=False)
    assert (own["epoch"], own.get("at")) == (2, None)
    assert (before["epoch"], before["at"]) == (0, "start")
    assert [r["protocol"] for r in read_results(run)] == ["training", "knn"]
    (kept,) = read_results(run / "start")
    assert kept.flat() == before.flat()
    # it is the accuracy of those weights, however they are named
    (named,) = evaluate(
        [f"checkpoint={run / 'start'}", *words[1:], f"run_dir={tmp_path / 'own'}"], ["knn"], progress=False
    )
    assert named.value == before.value
    assert named.identity == before.identity
    torch.testing.assert_close(load_backbone(run / "start").state_dict(), source_state(tmp_path))
    # a run that was stopped within its first epoch is not where it started
    content = read_checkpoint(run)
    content[INFO]["epochs_done"] = 0
    torch.save(content, run / "checkpoints" / "early.ckpt")
    early = evaluate([f"checkpoint={run / 'checkpoints' / 'early.ckpt'}", *words[1:]], ["knn"], progress=False)
    assert [(r["epoch"], r.get("at"), r.value) for r in early] == [(0, None, own.value), (0, "start", before.value)]
    # what is known is not measured again, and what is not is
    asked: list[Any] = []
    import selfsup.engine.evaluation as evaluation

    measure = evaluation.measure
    monkeypatch.setattr(evaluation, "measure", lambda *a, **k: asked.append(a) or measure(*a, **k))
    assert [r.value for r in evaluate(words, ["knn"], progress=False)] == [own.value, before.value]
    assert len(asked) == 1
    evaluate([words[0], "eval.knn.k=[5]", words[2]], ["knn"], progress=False)
    assert len(asked) == 3
    head, _, line, *_ = result_table([own, before]).splitlines()
    assert head.split("  ")[0] == "measure"
    assert line.index(own.text()) < line.index(before.text(), line.index(own.text()) + 1)
    assert head.index("at the start") == line.index(before.text(), line.index(own.text()) + 1)
    rows = read_table([run]).rows
    assert [(row["run"], row["epochs"]) for row in rows] == [("a", 2), ("a/start", 0)]
    # on other images, too
    shapes = ["data=shapes", "data.train_size=72", "data.test_size=40"]
    table = transfer([words[0], *shapes, *words[1:]], ["knn"], progress=False)
    assert list(table.records) == ["shapes", "shapes, at the start"]
    assert table.records["shapes, at the start"]["knn"].value == before.value
    assert "shapes, at the start" in str(table)


def source_state(folder: Path) -> dict[str, Tensor]:
    return load_backbone(source(folder)).state_dict()


def test_what_is_held_is_said(
    tiny_config: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = source(tmp_path)
    settings = [f"backbone.from={start}", "backbone.freeze=conv1,bn1", "backbone.freeze_epochs=1"]
    train(tiny_config("simclr", *SHORT, *settings, "backbone.anchor=gram", "backbone.anchor_weight=2"))
    said = capsys.readouterr().out
    # 3·3·3·4 weights of the stem, 4 scales and 4 offsets
    assert "frozen (backbone.freeze): 3 tensors with 116 of " in said
    assert "heads alone learn for 1 epoch (backbone.freeze_epochs)" in said
    assert "anchor (backbone.anchor): gram distance from the features at the start, times 2" in said


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["backbone.anchor=gram"], "backbone.anchor=gram holds on to weights .* set backbone.from"),
        (
            ["backbone.freeze_epochs=1", "backbone.adapter_rank=2"],
            "freeze_epochs=1 and backbone.adapter_rank=2 hold on",
        ),
        (["FROM", "backbone.freeze_epochs=2"], "leaves the backbone no epoch to learn in, as trainer.max_epochs=2"),
        (["backbone.freeze=conv2"], "nothing in the network is named 'conv2'.*conv1"),
        (["FROM", "backbone.adapter_rank=2"], "no linear layers"),
    ],
)
def test_what_cannot_be_held_stops_the_run_before_there_is_one(
    settings: list[str], message: str, tiny_config: Callable[..., Any], tmp_path: Path
) -> None:
    given = [f"backbone.from={source(tmp_path)}" if word == "FROM" else word for word in settings]
    with pytest.raises(UserError, match=message):
        train(tiny_config("simclr", *SHORT, *given))
    assert not (tmp_path / "run").exists()


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(UserError, match="freezes all of the network already"):
        BackboneConfig(freeze=["conv1"], adapter_rank=2)
    with pytest.raises(UserError, match=r"adapter_alpha does nothing without backbone\.adapter_rank"):
        BackboneConfig(adapter_alpha=2.0)
    with pytest.raises(UserError, match=r"backbone\.freeze is for training"):
        load_config(["checkpoint=untrained", "backbone=convnet", "backbone.freeze=stem"], kind="evaluate")


def test_how_a_run_was_trained_is_not_how_one_that_starts_from_it_is(
    tiny_config: Callable[..., Any], tmp_path: Path
) -> None:
    start = source(tmp_path)
    run = train(tiny_config("simclr", *SHORT, f"backbone.from={start}", "backbone.freeze=conv1", run="a"))
    config = load_config([f"backbone.from={run}", "backbone.anchor=gram"])
    assert (config.backbone.freeze, config.backbone.anchor, config.backbone.width) == ([], "gram", 4)
    assert config.backbone.from_ == str(run)
    shutil.rmtree(run / "start")
    (record,) = evaluate([f"checkpoint={run}", "eval.knn.k=[3]", "eval.figures=false"], ["knn"], progress=False)
    assert record["epoch"] == 2
