"""Training from weights that exist: which are taken, what is said of the others, and that the run needs only itself."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from selfsup.checkpoint import INFO, read_checkpoint
from selfsup.cli import main
from selfsup.config import from_values, load_config, to_yaml
from selfsup.engine.evaluation import evaluate
from selfsup.engine.start import digest_of, start_from
from selfsup.engine.training import load_resumed_config, train
from selfsup.errors import UserError
from selfsup.eval import read_results
from selfsup.methods import Method
from selfsup.nn import Backbone, BackboneConfig, build_backbone
from selfsup.opened import load_backbone

SHORT = ["trainer.max_epochs=1", "online.every_epochs=0", "data.train_size=36", "data.test_size=4"]
RESNET = BackboneConfig("resnet10t", small_stem=False)


def image(channels: int = 3, size: int = 32) -> Tensor:
    return torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(3))


def features(network: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return network.eval()(images)


def built(config: BackboneConfig, channels: int = 3, sizes: tuple[int, ...] = (), seed: int = 9) -> Backbone:
    torch.manual_seed(seed)
    return build_backbone(config, channels, image_sizes=sizes)


def file_of(network: nn.Module, path: Path, prefix: str = "", **more: Tensor) -> str:
    torch.save({f"{prefix}{key}": value for key, value in network.state_dict().items()} | more, path)
    return str(path)


@pytest.mark.parametrize("method", ["simclr", "moco"])
def test_a_run_starts_where_another_ended_and_needs_it_no_more(
    method: str, tiny_config: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = train(tiny_config("simclr", *SHORT, run="a"))
    seen: list[dict[str, Tensor]] = []
    original = Method.on_fit_start

    def look(self: Method) -> None:
        original(self)
        seen.extend(
            {key: value.clone() for key, value in module.state_dict().items()}
            for module in self.modules()
            if isinstance(module, Backbone)
        )

    monkeypatch.setattr(Method, "on_fit_start", look)
    expected = load_backbone(first)
    second = train(tiny_config(method, *SHORT, f"backbone.from={first}", "seed=5", run="b"))
    assert len(seen) == (2 if method == "moco" else 1)  # the momentum encoder too
    for state in seen:
        assert all(torch.equal(value, state[key]) for key, value in expected.state_dict().items())
    info = read_checkpoint(second)[INFO]
    assert info["start"]["name"] == str(first)
    assert info["start"]["digest"] == digest_of(expected.network.state_dict())
    assert info["start"]["notes"] == ()
    shutil.rmtree(first)
    own, before = evaluate([f"checkpoint={second}", "eval.knn.k=[3]", "eval.figures=false"], ["knn"], progress=False)
    assert (own["epoch"], before["epoch"]) == (1, 0)
    seen.clear()
    before = load_backbone(second)
    train(load_resumed_config([f"resume={second}", "trainer.max_epochs=2"]))
    assert not torch.equal(seen[0]["network.conv1.weight"], expected.network.conv1.weight)
    assert seen[0].keys() == before.state_dict().keys()
    assert read_checkpoint(second)[INFO]["start"] == info["start"]
    assert {r["started_from"] for r in read_results(second) if r["protocol"] == "training"} == {str(first)}


@pytest.mark.parametrize("prefix", ["", "module.encoder_q.", "backbone."])
def test_a_file_with_a_classifier_is_taken_whole(prefix: str, tmp_path: Path) -> None:
    network = timm.create_model("resnet10t", num_classes=7)
    backbone = built(RESNET)
    start = start_from(backbone, config_from(RESNET, file_of(network, tmp_path / "w.pth", prefix)))
    expected = network.forward_head(network.eval().forward_features(image()), pre_logits=True)
    assert torch.equal(features(backbone, image()), expected)
    assert start.notes == ()


def config_from(config: BackboneConfig, name: str) -> BackboneConfig:
    return BackboneConfig(**{**vars(config), "from_": name})


def test_a_stem_of_another_shape_stays_random_and_is_named(tmp_path: Path) -> None:
    network = timm.create_model("resnet18", num_classes=0)
    small = BackboneConfig("resnet18")
    backbone, untouched = built(small), built(small)
    start = start_from(backbone, config_from(small, file_of(network, tmp_path / "w.pth")))
    assert torch.equal(backbone.network.conv1.weight, untouched.network.conv1.weight)
    assert torch.equal(backbone.network.layer4[1].conv2.weight, network.layer4[1].conv2.weight)
    (note,) = start.notes
    assert note == "1 tensor is of another shape, and left as drawn: conv1.weight (64×3×7×7 there, 64×3×3×3 here)"


@pytest.mark.parametrize(("there", "here"), [(3, 1), (1, 3)])
def test_the_first_convolution_gives_grey_images_what_it_gave(there: int, here: int, tmp_path: Path) -> None:
    plain = BackboneConfig("resnet18", small_stem=False)
    network = timm.create_model("resnet18", num_classes=0, in_chans=there)
    backbone = built(plain, here)
    start = start_from(backbone, config_from(plain, file_of(network, tmp_path / "w.pth")))
    grey = image(1)
    expected = features(network, grey.expand(-1, there, -1, -1))
    torch.testing.assert_close(features(backbone, grey.expand(-1, here, -1, -1)), expected, rtol=1e-3, atol=1e-4)
    assert f"mean over its {there} channel" in start.notes[0]


def test_a_later_convolution_of_other_channels_stays_random_and_is_named(tmp_path: Path) -> None:
    """Groups of channels: only the first convolution sees colours, whose mean means something."""
    plain, grouped = (
        BackboneConfig("resnet50", small_stem=False, kwargs={"layers": [1, 1, 1, 1], "cardinality": n, "base_width": w})
        for n, w in ((1, 8), (2, 4))
    )
    checkpoint = run_of(built(plain, seed=1), tmp_path, plain)
    backbone, untouched = built(grouped), built(grouped)
    start = start_from(backbone, config_from(grouped, checkpoint))
    assert torch.equal(backbone.network.layer1[0].conv2.weight, untouched.network.layer1[0].conv2.weight)
    (note,) = start.notes
    assert note.startswith(
        "4 tensors are of another shape, and left as drawn: layer1.0.conv2.weight (8×8×3×3 there, 8×4"
    )


def test_position_embeddings_are_interpolated_as_timm_does(tmp_path: Path) -> None:
    kwargs = {"depth": 1, "embed_dim": 24, "num_heads": 2}
    vit = BackboneConfig("vit_tiny_patch16_224", kwargs=kwargs)
    network = timm.create_model(vit.name, num_classes=0, **kwargs)
    backbone = built(vit, sizes=(64, 32))
    start = start_from(backbone, config_from(vit, file_of(network, tmp_path / "w.pth")))
    assert start.notes == ("1 tensor is interpolated from images of 224 pixels to 64: pos_embed",)
    network.set_input_size(img_size=(64, 64))
    assert torch.equal(features(backbone, image(size=64)), features(network, image(size=64)))


def test_another_network_takes_what_it_shares_and_tells_the_rest(tmp_path: Path) -> None:
    first = built(BackboneConfig("resnet", width=4, blocks=[1, 1, 1, 1]), seed=1)
    deeper = BackboneConfig("resnet", width=4, blocks=[2, 1, 1, 1])
    checkpoint = run_of(first, tmp_path)
    start = start_from(built(deeper), config_from(deeper, checkpoint))
    assert start.notes[0].startswith("10 tensors are not there, and left as drawn: layer1.1.conv1.weight")
    shallower = BackboneConfig("resnet", width=4, blocks=[1, 1, 1, 1])
    start = start_from(built(shallower), config_from(shallower, run_of(built(deeper), tmp_path, deeper)))
    assert start.notes[0].startswith("12 tensors are not used here, and left out: layer1.1.conv1.weight")


def run_of(backbone: Backbone, folder: Path, config: BackboneConfig | None = None) -> str:
    config = config or BackboneConfig("resnet", width=4, blocks=[1, 1, 1, 1])
    values = {"backbone": vars(config), "method": {"name": "simclr"}, "data": {"name": "shapes", "image_size": 32}}
    info = {"config": values, "in_channels": 3, "mean": [0.5] * 3, "std": [0.5] * 3, "epochs_done": 1}
    state = {f"backbone.{key}": value for key, value in backbone.state_dict().items()}
    torch.save({INFO: info, "state_dict": state}, folder / "a.ckpt")
    return str(folder / "a.ckpt")


def test_statistics_that_differ_are_told(tmp_path: Path) -> None:
    backbone = built(BackboneConfig("resnet", width=4, blocks=[1, 1, 1, 1]))
    checkpoint = run_of(backbone, tmp_path)
    backbone.normalization = type(load_backbone(checkpoint).normalization)((0.1,) * 3, (0.5,) * 3)
    start = start_from(backbone, BackboneConfig("resnet", width=4, blocks=[1, 1, 1, 1], from_=checkpoint))
    assert "data.mean=[0.5,0.5,0.5]" in start.notes[0]


def test_what_cannot_be_started_from_is_an_error(tmp_path: Path) -> None:
    convnet = BackboneConfig("convnet", width=4, blocks=[1, 1])
    checkpoint = run_of(built(BackboneConfig("resnet", width=4, blocks=[1, 1, 1, 1])), tmp_path)
    with pytest.raises(UserError, match=r"none of its \d+ tensors fits backbone\.name=convnet"):
        start_from(built(convnet), config_from(convnet, checkpoint))
    for name, message in {"untrained": "no weights", str(tmp_path / "gone.pth"): r"gone\.pth"}.items():
        with pytest.raises(UserError, match=message):
            start_from(built(convnet), config_from(convnet, name))


def test_the_digest_is_of_names_and_values() -> None:
    state = {"b": torch.tensor([1.0, 2.0]), "a": torch.tensor(3)}
    expected = hashlib.sha256(b"a torch.int64 ();" + (3).to_bytes(8, "little"))
    expected.update(b"b torch.float32 (2,);" + torch.tensor([1.0, 2.0]).numpy().tobytes())
    assert digest_of(state) == expected.hexdigest()


def test_the_network_is_the_run_s_unless_another_is_named(tmp_path: Path) -> None:
    run = run_of(built(BackboneConfig("resnet", width=4, blocks=[1, 1, 1, 1])), tmp_path)
    start = f"backbone.from={run}"
    assert load_config([start]).backbone == BackboneConfig("resnet", width=4, blocks=[1, 1, 1, 1], from_=run)
    assert load_config([start, "backbone.small_stem=false"]).backbone.width == 4
    assert load_config([start, "backbone=resnet50"]).backbone.name == "resnet50"
    named = load_config([start, "backbone.name=resnet34"]).backbone
    assert (named.name, named.width, named.from_) == ("resnet34", 64, run)
    timms = load_config(["backbone.from=timm:vit_small_patch16_224.dino"]).backbone
    assert (timms.name, timms.small_stem, timms.kwargs) == ("vit_small_patch16_224.dino", False, {})
    assert load_config(["backbone.from=null"]).backbone == load_config().backbone
    from_saved = from_values(dataclasses.asdict(load_config()), [start]).backbone
    assert (from_saved.width, from_saved.from_) == (4, run)


def test_the_setting_is_called_from_on_the_command_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["train", f"backbone.from={tmp_path / 'gone'}"]) == 2
    assert "There is no checkpoint" in capsys.readouterr().err
    assert main(["train", "backbone=convnet", "--help"]) == 0
    assert "backbone.from=null" in capsys.readouterr().out


def test_the_setting_is_called_from_in_yaml_too(tmp_path: Path) -> None:
    config = load_config([f"backbone.from={run_of(built(BackboneConfig('resnet10t')), tmp_path)}", "backbone=convnet"])
    (tmp_path / "config.yaml").write_text(to_yaml(config), "utf-8")
    assert f"  from: {tmp_path / 'a.ckpt'}\n" in to_yaml(config)
    assert load_config(file=tmp_path / "config.yaml") == config


def test_a_source_without_a_network_needs_one_named(tmp_path: Path) -> None:
    name = file_of(nn.Linear(2, 2), tmp_path / "w.pth")
    for source in (name, "module:torchvision.models.resnet18"):
        with pytest.raises(UserError, match=r"does not say which network.*backbone\.name"):
            load_config([f"backbone.from={source}"])
        assert load_config([f"backbone.from={source}", "backbone=resnet50"]).backbone.from_ == source
    with pytest.raises(UserError, match="checkpoint="):
        load_config(["checkpoint=untrained", f"backbone.from={name}", "backbone=convnet"], kind="evaluate")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["backbone.name=convnext_atto", "backbone.small_stem=true"], "backbone.small_stem does nothing"),
        (["backbone=convnet", "backbone.kwargs.a=1", "backbone.stem_stride=2"], "kwargs and backbone.stem_stride do n"),
        (["backbone.width=8", "backbone.small_stem=false"], "backbone.width does nothing for the network 'resnet18'"),
        (["backbone.name=mobilenetv3_small_050", "backbone.zero_init_last=true"], "backbone.zero_init_last does"),
    ],
)
def test_settings_that_do_nothing_are_named(words: list[str], message: str) -> None:
    with pytest.warns(UserWarning, match=message):
        load_config(words)


@pytest.mark.parametrize("words", [["backbone.name=convnext_atto"], ["backbone=convnet"], ["backbone=vit_small"]])
@pytest.mark.filterwarnings("error")
def test_what_a_preset_sets_is_not_spoken_of(words: list[str]) -> None:
    load_config([*words, "data.image_size=64"])
