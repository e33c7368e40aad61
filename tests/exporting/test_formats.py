"""What is exported is read by the library it is for, by the lines that are printed, and gives the same features."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from tiny import TINY
from torch import Tensor, nn

import selfsup
from selfsup.checkpoint import INFO, read_checkpoint
from selfsup.cli import main
from selfsup.engine.training import train
from selfsup.errors import UserError
from selfsup.eval import add_results
from selfsup.exporting import FORMATS, from_detectron2, to_detectron2
from selfsup.nn import BackboneConfig, build_backbone
from selfsup.opened import open_network
from selfsup.types import Normalization

SHORT = [*TINY, "trainer.max_epochs=1", "online.every_epochs=0"]
Make = Callable[..., Path]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a second that no test may change, of a network that only this toolkit has."""
    return train(selfsup.load_config([*SHORT, f"run_dir={tmp_path_factory.mktemp('export') / 'run'}"]))


@pytest.fixture
def run_of(trained: Path, tmp_path: Path) -> Make:
    """Make a checkpoint of another network, with random weights and BatchNorm statistics of its own."""

    def make(config: BackboneConfig, channels: int = 3, size: int = 32) -> Path:
        torch.manual_seed(1)
        backbone = build_backbone(config, channels)
        for module in backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                module.running_mean.uniform_(-0.1, 0.1)
                module.running_var.uniform_(0.5, 1.5)
        content = read_checkpoint(trained)
        info = content[INFO]
        info["config"]["backbone"] = vars(config)
        info["config"]["data"]["image_size"] = size
        info |= {"in_channels": channels, "mean": [0.3, 0.4, 0.5][:channels], "std": [0.2, 0.25, 0.3][:channels]}
        content["state_dict"] = {f"backbone.{k}": v for k, v in backbone.state_dict().items()}
        path = tmp_path / "made" / "last.ckpt"
        path.parent.mkdir(exist_ok=True)
        torch.save(content, path)
        return path

    return make


def compare(checkpoint: Path, network: Any, normalized_inside: bool, size: int = 32, count: int = 4) -> None:
    """Compare features with the checkpoint's own, whose statistics are read from the file and not from the backbone."""
    info = read_checkpoint(checkpoint)[INFO]
    images = torch.rand(count, info["in_channels"], size, size, generator=torch.Generator().manual_seed(9))
    mean, std = (torch.tensor(info[name]).view(-1, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        expected = selfsup.load_backbone(checkpoint)((images - mean) / std)
        found = network(images if normalized_inside else (images - mean) / std)
    assert expected.std() > 0
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def execute(code: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(code, names)
    return names


RESNETS = {
    "small stem": (BackboneConfig("resnet18"), 3),
    "stem with a stride": (BackboneConfig("resnet18", stem_stride=2), 3),
    "ImageNet stem": (BackboneConfig("resnet18", small_stem=False, kwargs={"zero_init_last": False}), 3),
    "grey": (BackboneConfig("resnet18", small_stem=False), 1),
    "bottleneck": (BackboneConfig("resnet50", small_stem=False), 3),
}


@pytest.mark.parametrize("which", RESNETS)
@pytest.mark.parametrize("format", ["timm", "torchvision"])
def test_state_dicts_load_where_they_belong(which: str, format: str, run_of: Make, tmp_path: Path) -> None:
    checkpoint = run_of(*RESNETS[which])
    path, code = selfsup.export(checkpoint, format, tmp_path / "network.pth")
    network = execute(code)["network"]
    assert isinstance(network, torchvision.models.ResNet if format == "torchvision" else timm.models.ResNet)
    compare(checkpoint, network, normalized_inside=False)
    backbone = open_network(path, RESNETS[which][0]).network
    compare(checkpoint, backbone, normalized_inside=False)


def test_torchvision_itself_takes_the_keys(run_of: Make, tmp_path: Path) -> None:
    checkpoint = run_of(BackboneConfig("resnet50", small_stem=False))
    path, _ = selfsup.export(checkpoint, "torchvision", tmp_path / "network.pth")
    network = torchvision.models.resnet50().eval()
    left = network.load_state_dict(torch.load(path, weights_only=True), strict=False)
    assert set(left.missing_keys) == {"fc.weight", "fc.bias"}
    assert left.unexpected_keys == []
    network.fc = nn.Identity()
    compare(checkpoint, network, normalized_inside=False)


def test_a_transformer(run_of: Make, tmp_path: Path) -> None:
    config = BackboneConfig("vit_tiny_patch16_224", kwargs={"img_size": 32, "depth": 2})
    checkpoint = run_of(config)
    compare(checkpoint, execute(selfsup.export(checkpoint, "timm", tmp_path / "v.pth")[1])["network"], False)
    onnx, _ = selfsup.export(checkpoint, "onnx", tmp_path / "v.onnx")
    compare(checkpoint, session(onnx), True)
    with pytest.raises(UserError, match="torchvision has no ResNet like 'vit_tiny"):
        selfsup.export(checkpoint, "torchvision", tmp_path / "t.pth")


def session(path: Path) -> Callable[[Tensor], Tensor]:
    runtime = pytest.importorskip("onnxruntime", reason="the extra 'export' is not installed")
    opened = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(opened.run(["features"], {"images": images.numpy()})[0])


def test_onnx_takes_any_number_of_images(trained: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="the extra 'export' is not installed")
    path, code = selfsup.export(trained, "onnx", tmp_path / "network.onnx")
    for count in (1, 2, 7):
        compare(trained, session(path), True, count=count)
    assert [p.name for p in tmp_path.iterdir()] == ["network.onnx"], "the weights are in the one file"
    names: dict[str, Any] = {"images": torch.rand(2, 3, 32, 32).numpy()}
    exec(code, names)
    assert names["features"].shape[0] == 2


@pytest.mark.parametrize(("format", "name"), [("torchscript", "network.pt"), ("exported", "network.pt2")])
def test_programs_take_any_number_of_images(format: str, name: str, trained: Path, tmp_path: Path) -> None:
    _, code = selfsup.export(trained, format, tmp_path / name)
    network = execute(code)["network"]
    for count in (1, 2, 7):
        compare(trained, network, True, count=count)


@pytest.mark.parametrize("which", ["own", "timm"])
def test_a_model_card_loads_what_it_describes(
    which: str, trained: Path, run_of: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = trained if which == "own" else run_of(BackboneConfig("resnet18"))
    folder, code = selfsup.export(checkpoint, "safetensors", tmp_path / "card")
    compare(checkpoint, execute(code)["network"], False)
    card = (folder / "README.md").read_text("utf-8")
    monkeypatch.chdir(folder)
    (written,) = card.split("```python\n")[1:]
    compare(checkpoint, execute(written.split("```")[0])["network"], False)
    info = read_checkpoint(checkpoint)[INFO]
    assert str(list(info["mean"])) in card
    assert str(list(info["std"])) in card
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "model.safetensors"]


def test_a_model_card_states_the_results_of_this_checkpoint(trained: Path, tmp_path: Path) -> None:
    content = read_checkpoint(trained)
    (tmp_path / "checkpoints").mkdir()
    torch.save(content, tmp_path / "checkpoints" / "last.ckpt")
    folder, _ = selfsup.export(tmp_path, "safetensors", tmp_path / "before")
    assert "Not evaluated yet." in (folder / "README.md").read_text("utf-8")
    knn = {"protocol": "knn", "split": "test", "metric": "top1", "value": 0.4375, "k": 20, "temperature": 0.07}
    add_results(tmp_path, [knn | {"epoch": 1}, knn | {"epoch": 9, "value": 0.9876}])
    folder, _ = selfsup.export(tmp_path, "safetensors", tmp_path / "after")
    card = (folder / "README.md").read_text("utf-8")
    (row,) = [line for line in card.splitlines() if line.startswith("| knn")]
    assert "0.4375" in row
    assert "k 20, temperature 0.07" in row
    assert "0.9876" not in card, "that was another epoch"
    temperature = content[INFO]["config"]["method"]["temperature"]
    for fact in ("simclr", f"temperature={temperature}", "shapes, 32 pixels", "16 images a step", "width=4"):
        assert fact in card


#: Written down from detectron2's ResNet (modeling/backbone/resnet.py), not from our code.
DETECTRON2 = {
    "conv1.weight": "stem.conv1.weight",
    "bn1.running_mean": "stem.conv1.norm.running_mean",
    "layer1.0.conv1.weight": "res2.0.conv1.weight",
    "layer1.0.bn3.bias": "res2.0.conv3.norm.bias",
    "layer1.0.downsample.0.weight": "res2.0.shortcut.weight",
    "layer1.0.downsample.1.running_var": "res2.0.shortcut.norm.running_var",
    "layer3.5.bn2.weight": "res4.5.conv2.norm.weight",
    "layer4.2.conv3.weight": "res5.2.conv3.weight",
}


def test_detectron2_keys() -> None:
    state = torchvision.models.resnet50().state_dict()
    renamed = to_detectron2(state)
    for ours, theirs in DETECTRON2.items():
        assert renamed[theirs] is state[ours]
    assert len(renamed) == len(state) - 2 - sum("num_batches" in key for key in state)
    expected = {"stem.conv1.weight"} | {f"stem.conv1.norm.{p}" for p in PARAMETERS}
    for stage, blocks in enumerate((3, 4, 6, 3), start=2):
        for block in range(blocks):
            for layer in ("conv1", "conv2", "conv3", *(["shortcut"] if block == 0 else [])):
                name = f"res{stage}.{block}.{layer}"
                expected |= {f"{name}.weight"} | {f"{name}.norm.{p}" for p in PARAMETERS}
    assert renamed.keys() == expected
    back = from_detectron2(renamed)
    assert all(back[key] is value for key, value in state.items() if key in back)
    assert back.keys() == {k for k in state if "num_batches" not in k and not k.startswith("fc.")}
    with pytest.raises(ValueError, match="not a key of a ResNet"):
        to_detectron2({"blocks.0.attn.qkv.weight": torch.zeros(1)})


PARAMETERS = ("weight", "bias", "running_mean", "running_var")


def test_the_detectron2_file(run_of: Make, tmp_path: Path) -> None:
    checkpoint = run_of(BackboneConfig("resnet50", small_stem=False))
    path, settings = selfsup.export(checkpoint, "detectron2", tmp_path / "r50.pth")
    content = torch.load(path, weights_only=True)
    assert content.keys() == {"model", "__author__", "matching_heuristics"}
    network = torchvision.models.resnet50().eval()
    network.fc = nn.Identity()
    network.load_state_dict(network.state_dict() | from_detectron2(content["model"]))
    compare(checkpoint, network, False)
    assert "[76.5, 102.0, 127.5]" in settings, "its means are of pixels from 0 to 255"
    for config, name in (
        (BackboneConfig("resnet50"), "a.pth"),
        (BackboneConfig("resnet18", small_stem=False), "b.pth"),
    ):
        with pytest.raises(UserError, match="detectron2"):
            selfsup.export(run_of(config), "detectron2", tmp_path / name)
        assert not (tmp_path / name).exists()


@pytest.mark.parametrize("format", ["timm", "torchscript", "safetensors", "exported"])
def test_a_file_that_differs_is_not_kept(
    format: str, run_of: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = run_of(BackboneConfig("resnet18", small_stem=False))
    original = selfsup.exporting.trained.Trained.state.fget
    monkeypatch.setattr(
        "selfsup.exporting.trained.Trained.state",
        property(lambda self: {k: v * 1.001 if k == "conv1.weight" else v for k, v in original(self).items()}),
    )
    wrong = Normalization((0.31, 0.4, 0.5), (0.2, 0.25, 0.3))
    build = selfsup.exporting.trained.NormalizedBackbone
    monkeypatch.setattr("selfsup.exporting.trained.NormalizedBackbone", lambda network, _: build(network, wrong))
    with pytest.raises(UserError, match="differ by"):
        selfsup.export(checkpoint, format, tmp_path / "network.pt2")
    assert [p.name for p in tmp_path.iterdir()] == ["made"]


def test_mistakes(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "there").write_text("mine")
    run, out = str(trained), ["--out", str(tmp_path / "x.pth")]
    for arguments, message in {
        (run, "--format", "onxx", *out): "Did you mean 'onnx'",
        (run, "--format", "timm", "--out", str(tmp_path / "there")): "not overwritten",
        (run, "--format", "timm", *out): "safetensors",
        (run, "--format", "torchvision", *out): "safetensors",
        (run, "--format", "exported", *out): "x.pt2",
        (run, *out): "selfsup export RUN --format",
        (str(tmp_path / "none"), "--format", "timm", *out): "none",
    }.items():
        assert main(["export", *arguments]) == 2
        assert message in capsys.readouterr().err
    assert (tmp_path / "there").read_text() == "mine"
    assert [p.name for p in tmp_path.iterdir()] == ["there"]


def test_the_command(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(trained), "--format", "torchscript", "--out", str(tmp_path / "sub" / "n.pt")]) == 0
    assert "torch.jit.load(" in capsys.readouterr().out
    assert main(["export", "--help"]) == 0
    out = capsys.readouterr().out
    assert all(format in out for format in FORMATS)


def test_without_onnxruntime(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = importlib.import_module

    def missing(name: str, *rest: Any) -> Any:
        if name == "onnxruntime":
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)
        return original(name, *rest)

    monkeypatch.setattr("selfsup.errors.importlib.import_module", missing)
    with pytest.raises(UserError, match=r"onnx.*selfsup\[export\]"):
        selfsup.export(trained, "onnx", tmp_path / "n.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_s_settings_are_never_executed(trained: Path, tmp_path: Path) -> None:
    content = read_checkpoint(trained)
    trap = f"a=__import__('pathlib').Path({str(tmp_path / 'executed')!r}).touch(), b"
    content[INFO]["config"]["backbone"]["kwargs"] = {trap: 1}
    torch.save(content, tmp_path / "trap.ckpt")
    selfsup.export(tmp_path / "trap.ckpt", "safetensors", tmp_path / "out")
    assert not (tmp_path / "executed").exists()
