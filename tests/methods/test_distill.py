"""Distillation by hand: both see one crop, the queue is read before it is written, the teacher stays as it is."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_teacher
import torch
from test_contract import prepared, twin_seed
from torch import nn

import selfsup
from selfsup.checkpoint import read_checkpoint
from selfsup.engine.training import load_resumed_config, train
from selfsup.errors import UserError
from selfsup.functional import (
    info_nce,
    map_distillation,
    negative_cosine,
    resample_map,
    similarity_distillation,
)
from selfsup.methods import Anchor, Distill
from selfsup.nn import Backbone, BackboneConfig, Teacher, build_backbone
from selfsup.types import Normalization

TINY = ["method.teacher=module:tiny_teacher.teacher", "method.queue_size=48"]
RANKS = [[], ["method.spatial=contrast", "method.queue_size=37"]]


def network() -> nn.Module:
    return tiny_teacher.teacher().eval()


def test_step_compares_with_the_old_queue_then_enqueues_the_teacher_s_features(
    tiny_config: Callable[..., Any],
) -> None:
    method, batch = prepared(tiny_config("distill", "method.spatial_weight=0.3", "method.temperature=0.1"))
    twin = copy.deepcopy(method)
    old = method.queue.negatives()
    loss = method.training_step(batch, 0)

    (view,) = twin.views(batch.image, seed=twin_seed(method), index=batch.index)
    told, cells = network()(view.image), network().forward_features(view.image)
    own = twin.backbone.network.forward_features(view.image)
    similarity = similarity_distillation(twin.head(own.mean(dim=(2, 3))), told, old, 0.1, 0.07)
    assert cells.shape == (16, 6, 8, 8)
    assert own.shape[2] != 8
    torch.testing.assert_close(loss, similarity + 0.3 * map_distillation(twin.cell_head(own), cells))
    torch.testing.assert_close(method.queue.keys[:16], nn.functional.normalize(told))
    assert torch.equal(method.queue.keys[16:], old[16:])


def test_the_queue_keeps_the_order_of_the_images_and_forgets_the_oldest(tiny_config: Callable[..., Any]) -> None:
    method, batch = prepared(tiny_config("distill", "method.queue_size=24"))
    seen = []
    for step in range(3):
        (view,) = method.draw_views(batch, step)
        method.step((view,), batch)
        seen.append(nn.functional.normalize(network()(view.image)))
    torch.testing.assert_close(method.queue.keys, torch.cat([seen[1][8:], seen[2]]))  # the last 24 of 48


def test_cells_are_told_from_those_of_other_images(tiny_config: Callable[..., Any]) -> None:
    method, batch = prepared(tiny_config("distill", "method.spatial=contrast", "method.temperature=0.2"))
    twin = copy.deepcopy(method)
    queues = method.queue.negatives(), method.cell_queue.negatives()
    loss = method.training_step(batch, 0)
    (view,) = twin.views(batch.image, seed=twin_seed(method), index=batch.index)
    told, cells = network()(view.image), network().forward_features(view.image)
    own = twin.backbone.network.forward_features(view.image)
    query = resample_map(twin.cell_head(own), (8, 8))
    keys = torch.stack([cells[:, :, y, x] for y in range(8) for x in range(8)])
    queries = torch.stack([query[:, :, y, x] for y in range(8) for x in range(8)])
    spatial = info_nce(queries.flatten(0, 1), keys.flatten(0, 1), queues[1], 0.2)
    torch.testing.assert_close(
        loss, similarity_distillation(twin.head(own.mean(dim=(2, 3))), told, queues[0], 0.2, 0.07) + spatial
    )
    entered = method.cell_queue.keys[:16]
    assert torch.equal(method.cell_queue.keys[16:], queues[1][16:])
    cosine = torch.einsum("bd,bdyx->byx", entered, nn.functional.normalize(cells, dim=1)).flatten(1)
    torch.testing.assert_close(cosine.max(dim=1).values, torch.ones(16))  # each is a cell of its own image
    assert len(cosine.argmax(dim=1).unique()) > 4  # of different places
    assert not (torch.einsum("bd,cdyx->bcyx", entered, nn.functional.normalize(cells, dim=1)) > 0.99999).all()


def test_a_student_that_is_its_teacher_has_nothing_to_learn() -> None:
    method = Distill(network(), teacher=network(), image_size=32, batch_size=8, queue_size=16)
    with torch.no_grad():
        for head in (method.head, method.cell_head):
            head.weight.copy_(torch.eye(6).view_as(head.weight))
            head.bias.zero_()
    method.eval()  # without dropout, and with the statistics that the teacher has
    loss = method(torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8))
    loss.backward()
    assert abs(loss.item()) < 1e-6
    assert all(float(p.grad.abs().max()) < 1e-5 for p in method.parameters())


def test_the_teacher_stays_as_it_is_and_is_nobody_s_weight(tiny_config: Callable[..., Any]) -> None:
    method, batch = prepared(tiny_config("distill"))
    before = {key: value.clone() for key, value in method.teacher.backbone.state_dict().items()}
    method.train()
    loss = method.training_step(batch, 0)
    loss.backward()
    assert not any(module.training for module in method.teacher.backbone.modules())
    assert all(p.grad is None and not p.requires_grad for p in method.teacher.backbone.parameters())
    for key, value in method.teacher.backbone.state_dict().items():
        assert torch.equal(value, before[key]), key  # running statistics too
    assert not any(found.requires_grad for found in method.teacher(torch.rand(2, 3, 32, 32, requires_grad=True)))
    own = {id(p) for p in method.parameters()}
    assert not own & {id(p) for p in method.teacher.backbone.parameters()}
    assert not [key for key in method.state_dict() if "teacher" in key]


SEEN, OWN = Normalization((0.5, 0.4, 0.3), (0.2, 0.25, 0.3)), Normalization((0.1, 0.2, 0.6), (0.5, 0.1, 0.2))


def by_channel(values: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(values).view(1, -1, 1, 1)


def test_the_teacher_sees_images_in_its_own_normalisation() -> None:
    raw, inner = torch.rand(2, 3, 32, 32), network()
    for own, expected in ((OWN, OWN), (None, SEEN), (SEEN, SEEN)):
        teacher = Teacher(Backbone(inner, 3, own), SEEN, 3)
        feature, cells = teacher((raw - by_channel(SEEN.mean)) / by_channel(SEEN.std))
        wanted = (raw - by_channel(expected.mean)) / by_channel(expected.std)
        torch.testing.assert_close(feature, inner(wanted))
        torch.testing.assert_close(cells, inner.forward_features(wanted))


def test_the_teacher_follows_its_images_to_their_precision() -> None:
    """Whatever its own is, and with statistics of its own or without."""
    raw = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    for own in (None, OWN):
        inner = network().double()
        wanted = raw if own is None else (raw - by_channel(OWN.mean).double()) / by_channel(OWN.std).double()
        expected = inner(wanted)
        seen = raw if own is None else (raw - by_channel(SEEN.mean).double()) / by_channel(SEEN.std).double()
        teacher = Teacher(Backbone(inner, 3, own), SEEN, 3)
        for dtype in (torch.float64, torch.float32):
            feature, _ = teacher(seen.to(dtype))
            assert feature.dtype == dtype
            torch.testing.assert_close(feature.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seen", [Normalization((0.4,), (0.2,)), Normalization((0.5, 0.4, 0.3), (0.1, 0.2, 0.3))])
def test_grey_images_are_repeated_for_a_teacher_of_colours(seen: Normalization) -> None:
    """Three statistics meet one channel as their mean, as the views do it."""
    raw, inner = torch.rand(2, 1, 32, 32), network()
    feature, _ = Teacher(Backbone(inner, 3, OWN), seen, 1)((raw - 0.4) / 0.2)
    torch.testing.assert_close(feature, inner((raw.expand(-1, 3, -1, -1) - by_channel(OWN.mean)) / by_channel(OWN.std)))


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ("resnet18", "vit_tiny_patch16_224"),
        ("vit_tiny_patch16_224", "resnet18"),
        ("vit_tiny_patch16_224", "vit_tiny_patch16_224"),
    ],
)
def test_residual_networks_and_transformers_teach_each_other(student: str, teacher: str) -> None:
    own: dict[str, Any] = {"kwargs": {"patch_size": 8, "depth": 1}} if student.startswith("vit") else {}
    built = build_backbone(BackboneConfig(student, **own), 3, image_sizes=[32])
    other = build_backbone(BackboneConfig(teacher, small_stem=False), 3, image_sizes=[32])
    method = Distill(built, teacher=other, image_size=32, batch_size=4, queue_size=8)
    method(torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)).backward()
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)


def test_one_pass_gives_what_two_would() -> None:
    networks = [
        build_backbone(BackboneConfig("resnet18"), 3),
        build_backbone(BackboneConfig("convnet", width=4, blocks=[1, 1]), 3),
        build_backbone(BackboneConfig("vit_tiny_patch16_224", kwargs={"depth": 1}), 3, image_sizes=[32]),
        build_backbone(
            BackboneConfig("vit_tiny_patch16_224", kwargs={"depth": 1, "global_pool": "avg"}), 3, image_sizes=[32]
        ),
        build_backbone(BackboneConfig("mobilenetv3_small_050"), 3),
        build_backbone(BackboneConfig("swin_tiny_patch4_window7_224", kwargs={"img_size": 32, "window_size": 2}), 3),
        Backbone(network(), 3, dim=6),
    ]
    images = torch.rand(2, 3, 32, 32)
    for backbone in networks:
        backbone.eval()
        pooled, cells = backbone.forward_both(images)
        assert torch.equal(pooled, backbone(images))
        assert torch.equal(cells, backbone.forward_dense(images))


class Flat(nn.Module):
    """Gives features and no map."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.layer(images.mean(dim=(2, 3)))
        return found


def flat() -> Flat:
    return Flat()


def test_without_cells_a_teacher_needs_no_map(tiny_config: Callable[..., Any]) -> None:
    here = f"method.teacher=module:{__file__}:flat"
    with pytest.raises(UserError, match=r"method\.teacher cannot see .*without a map.*method\.spatial_weight=0"):
        prepared(tiny_config("distill", here))
    method, batch = prepared(tiny_config("distill", here, "method.spatial_weight=0"))
    assert not hasattr(method, "cell_head")
    method.training_step(batch, 0).backward()
    with pytest.raises(UserError, match=r"Flat gives features without a map.*method\.spatial_weight=0"):
        Distill(Flat(), teacher=network(), image_size=32)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["method.teacher=null"], r"learns from a teacher: set method\.teacher=RUN"),
        (["method.teacher=runs/nowhere"], r"method\.teacher: There is no checkpoint runs/nowhere"),
        (["method.teacher=timm:resnet81"], r"method\.teacher: .*timm has no network 'resnet81'.*resnet"),
        (["method.teacher=untrained"], r"method\.teacher=untrained has learnt nothing"),
        (["method.teacher=raw_pixels"], r"method\.teacher=raw_pixels has learnt nothing"),
        (["method.queue_size=15"], r"method\.queue_size=15"),
        (["method.spatial=dense"], r"method\.spatial.*cosine"),
    ],
)
def test_what_cannot_teach_is_a_sentence(words: list[str], said: str, tiny_config: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=said) as refusal:
        prepared(tiny_config("distill", *words))
    assert "\n" not in str(refusal.value)


def test_a_teacher_of_other_channels_is_refused() -> None:
    with pytest.raises(UserError, match=r"method\.teacher takes images of 3 channels and the data has 2"):
        Teacher(Backbone(network(), 3), Normalization((0.5, 0.5), (0.2, 0.2)), 2)
    with pytest.raises(UserError, match=r"takes images of 1 channel and the data has 3"):
        Teacher(Backbone(nn.Conv2d(1, 4, 1), 1, dim=4), SEEN, 3)
    with pytest.raises(UserError, match=r"open_network\('runs/a'\)"):
        Distill(network(), teacher="runs/a")


def test_a_transformer_of_another_size_is_refused(tiny_config: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / "fixed.py"
    file.write_text(
        "import timm\ndef network():\n"
        "    return timm.create_model('vit_tiny_patch16_224', num_classes=0, depth=1, img_size=64)\n"
    )
    with pytest.raises(UserError, match=r"method\.teacher: .*fails on images \[2, 3, 32, 32\].*set image_size"):
        prepared(tiny_config("distill", f"method.teacher=module:{file}:network"))
    only = {"depth": 1, "img_size": 64, "dynamic_img_size": False}
    fixed = build_backbone(BackboneConfig("vit_tiny_patch16_224", kwargs=only), 3)
    with pytest.raises(UserError, match=r"method\.teacher cannot see views of 32×32 pixels \(Input.*data\.image_size"):
        Distill(network(), teacher=fixed, image_size=32)


def test_an_anchor_holds_the_feature_of_the_one_pass(tiny_config: Callable[..., Any]) -> None:
    method, batch = prepared(tiny_config("distill"))
    first = copy.deepcopy(method.backbone)
    method.anchor = Anchor(first, "cosine", 3.0)
    with torch.no_grad():
        for parameter in method.backbone.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    twin = copy.deepcopy(method)
    twin.anchor = None
    (view,) = method.draw_views(batch, 0)
    distance = 1 + negative_cosine(copy.deepcopy(method.backbone)(view.image), first.eval()(view.image))
    assert distance > 0.01
    output = method.held_step((view,), batch)
    torch.testing.assert_close(output.logs["anchor"], distance)
    twin.draw_views(batch, 0)
    torch.testing.assert_close(output.loss, twin.held_step((view,), batch).loss + 3 * distance)


def test_a_file_of_weights_says_its_network_by_a_setting(tiny_config: Callable[..., Any], tmp_path: Path) -> None:
    import timm

    file = tmp_path / "weights.pth"
    torch.save(timm.create_model("resnet18", num_classes=0).state_dict(), file)
    with pytest.raises(UserError, match=r"method\.teacher_backbone"):
        prepared(tiny_config("distill", f"method.teacher={file}"))
    method, _ = prepared(tiny_config("distill", f"method.teacher={file}", "method.teacher_backbone=resnet18"))
    assert method.teacher.backbone.dim == 512


def assert_same_weights(one: Path, other: Path) -> None:
    states = [read_checkpoint(run)["state_dict"] for run in (one, other)]
    assert states[0].keys() == states[1].keys()
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), key


def test_a_run_teaches_goes_on_and_knows_its_teacher(
    tiny_config: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (train(tiny_config("simclr", f"seed={seed}", run=f"teacher{seed}")) for seed in (0, 1))
    capsys.readouterr()
    words = [f"method.teacher={first}", "trainer.max_epochs=1", "optimizer.schedule=constant"]
    run = train(tiny_config("distill", *words, run="student"))
    said = capsys.readouterr().out
    assert f"learns from {first}: 0.0" in said
    assert "checkpoints do not hold it" in said
    content = read_checkpoint(run)
    assert not [key for key in content["state_dict"] if "teacher" in key]
    assert content["selfsup"]["teacher"]["name"] == str(first)
    assert '"teacher": {' in (run / "environment.json").read_text()
    # features without it, and its head with it
    assert selfsup.load_backbone(run).dim == 32
    opened = selfsup.open_network(run)
    assert opened.head() is not None

    whole = train(tiny_config("distill", f"method.teacher={first}", "optimizer.schedule=constant", run="whole"))
    moved = tmp_path / "moved"
    first.rename(moved)
    with pytest.raises(UserError, match=r"method\.teacher: There is no checkpoint .*opened again whenever a run"):
        train(load_resumed_config([f"resume={run}", "trainer.max_epochs=2"]))
    with pytest.warns(UserWarning, match="head cannot be built again"):
        assert opened.head() is None
    second.rename(first)
    with pytest.raises(UserError, match=r"is not the teacher that this run has learnt from \(SHA-256"):
        train(load_resumed_config([f"resume={run}", "trainer.max_epochs=2"]))
    train(load_resumed_config([f"resume={run}", "trainer.max_epochs=2", f"method.teacher={moved}"]))
    assert f"teacher: {moved}" in (run / "config.yaml").read_text()
    assert_same_weights(whole, run)
