"""Backbones that were not trained here: timm's, files of weights, modules; and that none of them runs hidden code."""

from __future__ import annotations

import argparse
import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from selfsup.cli import main
from selfsup.engine.evaluation import evaluate, load_evaluate_config
from selfsup.errors import UserError
from selfsup.eval import read_results
from selfsup.nn import BackboneConfig
from selfsup.opened import open_network
from selfsup.types import Normalization

RESNET18 = BackboneConfig("resnet18", small_stem=False)
SMALL = [
    "data=shapes",
    "data.train_size=60",
    "data.test_size=30",
    "data.image_size=32",
    "eval.knn.k=[3]",
    "eval.figures=false",
    "accelerator=cpu",
]


def scrambled(network: nn.Module) -> nn.Module:
    """Give every BatchNorm its own weights and statistics, so that a tensor that is not loaded shows."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return network.eval()


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    """torchvision's ResNet-18 with its classifier."""
    torch.manual_seed(0)
    return scrambled(torchvision.models.resnet18())


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def features_of(resnet: nn.Module, images: Tensor) -> Tensor:
    """What torchvision's network has before its classifier."""
    seen: list[Tensor] = []
    handle = resnet.avgpool.register_forward_hook(lambda *a: seen.append(a[2].flatten(1)))
    with torch.no_grad():
        resnet(images)
    handle.remove()
    assert seen[0].std() > 0.01
    return seen[0]


FORMS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "plain": lambda s: s,
    "state_dict of a training loop": lambda s: {"epoch": 3, "arch": "resnet18", "state_dict": s, "optimizer": {}},
    "data parallel": lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}},
    "MoCo": lambda s: {
        "state_dict": {f"module.encoder_k.{k}": torch.zeros_like(v) for k, v in s.items()}
        | {f"module.encoder_q.{k}": v for k, v in s.items()}
        | {"module.queue": torch.zeros(2, 2), "module.encoder_q.fc.0.weight": torch.zeros(2, 2)}
    },
    "backbone and projector": lambda s: (
        {f"backbone.{k}": v for k, v in s.items()} | {"projector.0.weight": s["bn1.bias"]}
    ),
    "DINO": lambda s: {
        "student": {f"module.backbone.{k}": torch.zeros_like(v) for k, v in s.items()},
        "teacher": {f"backbone.{k}": v for k, v in s.items()} | {"head.mlp.0.weight": torch.zeros(2)},
        "args": argparse.Namespace(lr=0.1),
    },
    "before counters": lambda s: {k: v for k, v in s.items() if "num_batches" not in k},
}


@pytest.mark.parametrize("form", FORMS)
def test_a_state_dict_gives_torchvision_s_features(
    form: str, resnet: nn.Module, images: Tensor, tmp_path: Path
) -> None:
    torch.save(FORMS[form](resnet.state_dict()), tmp_path / "w.pth")
    backbone = open_network(str(tmp_path / "w.pth"), RESNET18).network
    with torch.no_grad():
        torch.testing.assert_close(backbone(images), features_of(resnet, images), rtol=1e-4, atol=1e-5)


def test_safetensors(resnet: nn.Module, images: Tensor, tmp_path: Path) -> None:
    save_file(resnet.state_dict(), tmp_path / "w.safetensors")
    backbone = open_network(str(tmp_path / "w.safetensors"), RESNET18).network
    with torch.no_grad():
        torch.testing.assert_close(backbone(images), features_of(resnet, images), rtol=1e-4, atol=1e-5)
    (tmp_path / "broken.safetensors").write_bytes(b"no such thing")
    with pytest.raises(UserError, match="broken"):
        open_network(str(tmp_path / "broken.safetensors"), RESNET18)


def test_a_network_for_grey_images(tmp_path: Path) -> None:
    network = scrambled(timm.create_model("resnet18", num_classes=0, in_chans=1))
    torch.save(network.state_dict(), tmp_path / "grey.pt")
    grey = torch.rand(2, 1, 64, 64)
    with torch.no_grad():
        expected = network(grey)
        assert expected.std() > 0.01
        assert torch.equal(open_network(str(tmp_path / "grey.pt"), RESNET18).network(grey), expected)


MISFITS: dict[str, tuple[Callable[[dict[str, Tensor]], Any], BackboneConfig, str]] = {
    "a deeper network's weights": (
        lambda s: s,
        BackboneConfig("resnet34", small_stem=False),
        r"keys missing \(layer1\.2\.conv1\.weight.*nothing unexpected.*backbone",
    ),
    "a shallower network": (
        lambda s: s | {"layer1.2.conv1.weight": s["bn1.bias"]},
        RESNET18,
        r"nothing missing, 1 keys unexpected \(layer1\.2\.conv1\.weight",
    ),
    "the stem for small images": (
        lambda s: s,
        BackboneConfig("resnet18"),
        r"conv1\.weight is \[64, 3, 7, 7\].*small_stem",
    ),
    "half of it": (lambda s: dict(list(s.items())[:40]), RESNET18, "missing"),
    "nothing like it": (lambda s: {"a.b": s["bn1.bias"]}, RESNET18, "missing"),
    "two that fit": (
        lambda s: {f"left.{k}": v for k, v in s.items()} | {f"right.{k}": v for k, v in s.items()},
        RESNET18,
        r"'left\.', 'right\.'",
    ),
    "no tensors": (lambda s: {"epoch": 3}, RESNET18, "state dict"),
    "no dictionary": (lambda s: s["bn1.bias"], RESNET18, "state dict"),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_weights_that_do_not_fit_are_named(misfit: str, resnet: nn.Module, tmp_path: Path) -> None:
    change, network, message = MISFITS[misfit]
    torch.save(change(resnet.state_dict()), tmp_path / "w.pth")
    with pytest.raises(UserError, match=message):
        open_network(str(tmp_path / "w.pth"), network)


class _Malice:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("executed"),))


@pytest.mark.parametrize("write", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_a_file_of_weights_is_never_executed(write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write({"state_dict": {}, "more": _Malice()}, Path("bad.pth"))
    with pytest.raises(UserError, match=r"bad\.pth"):
        open_network("bad.pth", RESNET18)
    assert not Path("executed").exists()


def test_timm_brings_its_own_normalisation(images: Tensor) -> None:
    backbone = open_network("timm:vit_tiny_patch16_224.augreg_in21k", pretrained=False).network
    stated = timm.get_pretrained_cfg("vit_tiny_patch16_224.augreg_in21k")
    assert backbone.normalization == Normalization(tuple(stated.mean), tuple(stated.std))
    assert backbone.normalization != Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    with torch.no_grad():
        assert backbone(torch.rand(2, 3, 224, 224)).shape == (2, 192)
    assert not backbone.training


def test_a_folder_that_could_name_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet18", "pretrained_cfg": {}}))
    for scheme in ("local-dir", "local_dir"):
        with pytest.raises(UserError, match="timm"):
            open_network(f"timm:{scheme}:{tmp_path}")


def test_timm_mistakes(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="Did you mean 'resnet18'"):
        open_network("timm:resnet_18")
    with pytest.raises(UserError, match=r"data\.image_size=224"):
        evaluate(["checkpoint=timm:mixer_s16_224", "pretrained=false", *SMALL], ["knn"], progress=False)
    # a transformer takes any whole number of patches
    evaluate(["checkpoint=timm:test_vit", "pretrained=false", *SMALL], ["knn"], progress=False)

    def offline(*_: Any, **__: Any) -> None:
        raise ConnectionError("the hub cannot be reached.")

    monkeypatch.setattr("timm.models._builder.load_pretrained", offline)
    with pytest.raises(UserError, match=r"cannot be reached\).*backbone\.name=resnet18.*pretrained=false"):
        open_network("timm:resnet18.a1_in1k")


MODULE = """
import torch
from torch import nn
from selfsup.types import Normalization

class Mean(nn.Module):
    normalization = Normalization((0.0,) * 3, (2.0,) * 3)

    def forward(self, images):
        return images.mean((2, 3))

def make():
    return Mean()

def broken():
    raise RuntimeError("out of luck")

instance, number = Mean(), 3
"""


def test_a_module_of_one_s_own(tmp_path: Path, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "mine", raising=False)  # another test's
    (tmp_path / "mine.py").write_text(MODULE)
    for name in ("make", "Mean", "instance"):
        network = open_network(f"module:{tmp_path}/mine.py:{name}").network
        assert torch.equal(network(images), images.mean((2, 3)))
    assert "mine" not in sys.modules, "a file of one's own hides no module of its name"
    assert open_network("module:torchvision.models.resnet18").network.fc.out_features == 1000
    (tmp_path / "wrong.py").write_text("import no_such_package_at_all")
    for place, message in {
        f"{tmp_path}/mine.py:makes": "Did you mean 'make'",
        f"{tmp_path}/mine.py:broken": "out of luck",
        f"{tmp_path}/mine.py:number": "calling",
        f"{tmp_path}/mine.py:torch": "calling",
        f"{tmp_path}/gone.py:make": r"gone\.py",
        f"{tmp_path}/wrong.py:make": "no_such_package_at_all",
        "no_such_package_at_all.make": "no_such_package_at_all",
        "builtins.dict": "gives a dict",
    }.items():
        with pytest.raises(UserError, match=message):
            open_network(f"module:{place}")


def test_the_records_say_where_the_weights_come_from(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MODULE)
    checkpoint = f"module:{tmp_path}/mine.py:make"
    config = load_evaluate_config([f"checkpoint={checkpoint}", f"run_dir={tmp_path / 'mine'}", *SMALL])
    records = evaluate(config, ("knn", "diagnostics"), progress=False)
    assert read_results(tmp_path / "mine") == records
    for record in records:
        assert (record["checkpoint"], record["std"], record["dim"], record["epoch"]) == (checkpoint, [2.0] * 3, 3, None)


def test_the_command_takes_every_kind(
    resnet: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(resnet.state_dict(), "w.pth")
    weights = ["checkpoint=w.pth", "backbone=resnet18", "backbone.small_stem=false"]
    for number, which in enumerate((weights, ["checkpoint=timm:resnet10t", "pretrained=false"])):
        assert main(["knn", *which, *SMALL, f"run_dir=r{number}"]) == 0, capsys.readouterr().err
        (record,) = read_results(f"r{number}")
        assert record["dim"] == 512
    assert record["pretrained"] is False
    assert record["mean"] == list(timm.get_pretrained_cfg("resnet10t").mean)
    assert main(["knn", "checkpoint=w.pth", *SMALL]) == 2
    assert "backbone=" in capsys.readouterr().err
    assert not Path("results.json").exists()


def test_the_network_is_seeded_and_the_caller_s_generator_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    first, again, other = (
        open_network("timm:resnet10t", pretrained=False, seed=seed).network.network.conv1[0].weight
        for seed in (0, 0, 1)
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
