"""A checkpoint is opened once, and what is wrong with it, or with what it is to see, is found before any work."""

from __future__ import annotations

import copy
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny import TINY
from torch import nn

import selfsup
from selfsup.checkpoint import INFO, read_checkpoint
from selfsup.cli import main
from selfsup.commands.transfer import transfer
from selfsup.config import load_config
from selfsup.engine.evaluation import load_evaluate_config
from selfsup.engine.training import train
from selfsup.errors import UserError
from selfsup.eval import read_results
from selfsup.nn import Backbone, BackboneConfig
from selfsup.opened import open_network
from selfsup.types import ImageFacts, Normalization

QUICK = ["eval.knn.k=[3]", "eval.figures=false", "accelerator=cpu"]
NARROW = ["backbone=resnet_tiny", "backbone.width=4"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch at 40 pixels, with statistics of its own, that no test may change."""
    folder = tmp_path_factory.mktemp("opened") / "run"
    own = ["data.image_size=40", "data.mean=[0.4,0.45,0.5]", "data.std=[0.3,0.2,0.25]"]
    return train(load_config([*TINY, *own, "trainer.max_epochs=1", "online.every_epochs=0", f"run_dir={folder}"]))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of two classes, of another size than anything was trained at."""
    root = tmp_path_factory.mktemp("photos")
    numbers = np.random.default_rng(0)
    for name in ("a", "b"):
        (root / name).mkdir()
        for number in range(12):
            Image.fromarray(numbers.integers(0, 256, (50, 60, 3), np.uint8)).save(root / name / f"{number}.png")
    return root


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


COMMANDS = {
    "evaluate": ["evaluate", "{run}", "--only", "knn,layers", "run_dir=r", *QUICK],
    "knn": ["knn", "{run}", "run_dir=r", *QUICK],
    "probe": ["probe", "{run}", "run_dir=r", "eval.probe_epochs=1", *QUICK],
    "neighbours": ["neighbours", "{run}", "run_dir=r", *QUICK],
    "embed": ["embed", "{run}", "--out", "e.npz", "accelerator=cpu"],
    "cka": ["cka", "{run}", "untrained", "--out", "c", "accelerator=cpu"],
    "transfer": ["transfer", "{run}", "run_dir=r", "--only", "knn", *QUICK],
    "export": ["export", "{run}", "--format", "torchscript", "--out", "e.pt"],
}


def command(name: str, run: Path, *more: str) -> list[str]:
    return [word.format(run=run) for word in COMMANDS[name]] + list(more)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_reads_the_file_once(
    name: str, trained: Path, photos: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: Counter[str] = Counter()
    load = torch.load

    def counting(file: Any, *args: Any, **kwargs: Any) -> Any:
        reads[Path(str(file)).name] += 1
        return load(file, *args, **kwargs)

    monkeypatch.setattr(torch, "load", counting)
    more = ["data=digits,shapes", "data.limit=20", "data.image_size=40"] if name == "transfer" else []
    assert main(command(name, trained, *more)) == 0
    assert reads["last.ckpt"] == 1


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("export", "transfer")])
def test_other_images_are_judged_as_the_run_was_trained(
    name: str, trained: Path, photos: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(name, trained, "data=image_folder", f"data.root={photos}")) == 0
    out = capsys.readouterr().out
    assert "(40 px, its own size, mean [0.4, 0.45, 0.5], std [0.3, 0.2, 0.25])" in out
    if name == "embed":
        about = selfsup.read_embeddings("e.npz").about
        assert (about["image_size"], about["mean"], about["std"]) == (40, [0.4, 0.45, 0.5], [0.3, 0.2, 0.25])
    elif name not in ("cka", "neighbours"):
        assert {record["image_size"] for record in read_results("r")} == {40}


def test_what_is_given_wins(trained: Path, photos: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["data=image_folder", f"data.root={photos}", "data.image_size=48", "data.std=[1,1,1]"]
    assert main(command("knn", trained, *given)) == 0
    assert "(48 px, mean [0.4, 0.45, 0.5], std [1.0, 1.0, 1.0])" in capsys.readouterr().out
    assert [record["image_size"] for record in read_results("r")] == [48]
    network = selfsup.engine.evaluation.open_evaluation([f"checkpoint={trained}", *given])[1].network
    assert network.normalization == Normalization((0.4, 0.45, 0.5), (1.0, 1.0, 1.0))


def test_a_network_of_timm_is_judged_at_its_own_size_and_others_at_the_data_s(here: Path) -> None:
    data = load_evaluate_config(["checkpoint=timm:resnet10t", "pretrained=false", "data=shapes"]).data
    # as timm states them for this network
    assert (data.image_size, data.mean, data.std) == (176, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    plain = load_config(["data=shapes"]).data
    data = load_evaluate_config(["checkpoint=untrained", *NARROW, "data=shapes"]).data
    assert (data.image_size, data.mean) == (plain.image_size, plain.mean)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("run", (40, Normalization((0.4, 0.45, 0.5), (0.3, 0.2, 0.25)), "run", 1)),
        ("run/checkpoints/last.ckpt", (40, Normalization((0.4, 0.45, 0.5), (0.3, 0.2, 0.25)), "run", 1)),
        ("w.pth", (None, None, None, None)),
        ("w.safetensors", (None, None, None, None)),
        ("timm:vit_tiny_patch16_224", (224, Normalization((0.5,) * 3, (0.5,) * 3), None, None)),
        ("module:mine.py:Mean", (24, None, None, None)),
        ("untrained", (None, None, None, 0)),
        ("raw_pixels", (None, None, None, None)),
    ],
)
def test_what_each_name_means(name: str, expected: tuple[Any, ...], trained: Path, here: Path) -> None:
    shutil.copytree(trained, here / "run")
    own = selfsup.load_backbone("run")
    torch.save({"state_dict": own.network.state_dict()}, "w.pth")
    save_file(own.network.state_dict(), "w.safetensors")
    Path("mine.py").write_text(
        "from torch import nn\nclass Mean(nn.Module):\n    image_size = 24\n    def forward(self, x):\n"
        "        return x.mean((2, 3))\n"
    )
    narrow = BackboneConfig("resnet", width=4, blocks=[1, 1, 1, 1], stem_stride=2)
    images = ImageFacts("any", "train", 3, 32, Normalization((0.5,) * 3, (0.5,) * 3))
    opened = open_network(name, narrow, images=images, pretrained=False)
    size, normalization, run, epochs = expected
    assert (opened.image_size, opened.normalization, opened.epochs) == (size, normalization, epochs)
    assert (None if opened.run is None else opened.run.name) == run
    assert (opened.config is None) == (run is None)
    assert (opened.network is None) == (name == "raw_pixels")
    assert opened.network is None or not opened.network.training
    if name.startswith(("run", "w.")):
        assert isinstance(opened.network, Backbone)
        weights = opened.network.network.state_dict()
        assert all(torch.equal(value, weights[key]) for key, value in own.network.state_dict().items())


MISTAKES: dict[str, tuple[list[str], str]] = {
    "no data": (["knn", "timm:resnet10t"], "data="),
    "no data for a baseline": (["knn", "raw_pixels"], "data="),
    "no data for weights": (["knn", "w.pth", *NARROW], "data="),
    "grey network": (["knn", "w1.pth", *NARROW, "data=shapes"], "takes images of 1 channel"),
    "a size it refuses": (
        ["knn", "timm:vit_tiny_patch16_224", "pretrained=false", "data=shapes", "data.image_size=40"],
        "set data.image_size=224",
    ),
    "maps": (["knn", "module:mine.py:Maps", "data=shapes"], r"[2, 3, 32, 32]"),
    "no device": (["knn", "{run}", "accelerator=gpu"], "no GPU"),
    "no such device": (["embed", "{run}", "--out", "e.npz", "accelerator=tpu"], "there is no 'tpu'"),
    "a file in the way": (["knn", "{run}", "run_dir=w.pth/x"], "w.pth is a file"),
    "a file in the way of an embedding": (["embed", "{run}", "--out", "w.pth/e.npz"], "w.pth is a file"),
    "a file in the way of cka": (["cka", "{run}", "untrained", "--out", "w.pth/x"], "w.pth is a file"),
    "a file in the way of neighbours": (["neighbours", "{run}", "run_dir=w.pth"], "w.pth"),
    "another network than the run's": (["knn", "{run}", "data=digits", "backbone=resnet18"], "backbone: "),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_found_before_any_image_is_read(
    mistake: str, trained: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if mistake == "no device" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    network = selfsup.load_backbone(trained).network
    torch.save(network.state_dict(), "w.pth")
    torch.save(network.state_dict() | {"conv1.weight": network.conv1.weight[:, :1].clone()}, "w1.pth")
    Path("mine.py").write_text("from torch import nn\nclass Maps(nn.Identity):\n    pass\n")

    def read(*_: Any) -> None:
        raise AssertionError("the images were read")

    for module in ("data", "engine.evaluation", "exporting.embedding"):
        monkeypatch.setattr(f"selfsup.{module}.load_splits", read)
    words, message = MISTAKES[mistake]
    assert main([word.format(run=trained) for word in words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["knn", "embed", "export"])
def test_a_disk_without_room_is_told_before_the_work(
    name: str, trained: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = shutil.disk_usage(here)._replace(free=100)
    monkeypatch.setattr("selfsup.writing.shutil.disk_usage", lambda _: usage)

    def work(*_: Any, **__: Any) -> None:
        raise AssertionError("features were computed")

    monkeypatch.setattr(Backbone, "forward_dense", work)
    monkeypatch.setattr("selfsup.exporting.embedding.extract_features", work)
    monkeypatch.setattr("selfsup.engine.evaluation.measure", work)
    assert main(command(name, trained)) == 2
    assert "make room" in capsys.readouterr().err
    assert not list(here.iterdir())


def places(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key in value:
        yield (*path, key)
        if isinstance(value[key], dict):
            yield from places(value[key], (*path, key))


def changed(content: dict[str, Any], path: tuple[str, ...], change: Callable[[dict[str, Any], str], None]) -> Any:
    made = copy.copy(content)
    inner = made
    for key in path[:-1]:
        inner[key] = copy.copy(inner[key])
        inner = inner[key]
    change(inner, path[-1])
    return made


@pytest.mark.filterwarnings("ignore:The head cannot be built again")
def test_an_incomplete_checkpoint_is_one_sentence(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = read_checkpoint(trained)
    content = {key: content[key] for key in (INFO, "state_dict")}
    (tmp_path / "made.ckpt").touch()

    def outcome(made: Any) -> str:
        monkeypatch.setattr(torch, "load", lambda *_, **__: made)
        said = ""
        try:
            open_network(tmp_path / "made.ckpt").head()
        except UserError as error:
            said = str(error)
        assert said == "" or ("made.ckpt" in said and "\n" not in said)
        return said

    assert outcome(content) == ""
    needed = [("state_dict",), *((INFO, key) for key in ("config", "in_channels", "mean", "std", "epochs_done"))]
    needed += [(INFO, "config", key) for key in ("backbone", "data", "method")]
    for path in [*needed, ("state_dict", "backbone.network.conv1.weight"), (INFO, "config", "augment")]:
        said = outcome(changed(content, path, lambda inner, key: inner.pop(key)))
        assert ("it lacks" in said) == (path in needed), path
        assert ("with its weights" in said) == (path[-1] == "backbone.network.conv1.weight"), path
    wrong = [None, "text", -3, [], {}]
    for number, path in enumerate(path for path in places(content) if path[0] == INFO):
        value = wrong[number % len(wrong)]
        outcome(changed(content, path, lambda inner, key, value=value: inner.update({key: value})))


def test_a_checkpoint_names_no_files(trained: Path, tmp_path: Path) -> None:
    content = read_checkpoint(trained)
    settings = content[INFO]["config"]["backbone"]
    (tmp_path / "evil.pth").write_bytes(b"opened")
    for name, value in {
        "checkpoint_path": str(tmp_path / "evil.pth"),
        "pretrained": True,
        "pretrained_cfg": {"file": str(tmp_path / "evil.pth")},
        "pretrained_cfg_overlay": {"hf_hub_id": "some/body"},
        "cache_dir": str(tmp_path),
    }.items():
        settings.update(name="resnet18", kwargs={name: value})
        torch.save(content, tmp_path / "evil.ckpt")
        with pytest.raises(UserError, match=f"kwargs.{name} is not taken"):
            open_network(tmp_path / "evil.ckpt")


def test_a_file_that_holds_itself_ends(tmp_path: Path) -> None:
    content: dict[Any, Any] = {3: torch.zeros(2)}
    content["model"] = content
    torch.save(content, tmp_path / "loop.pth")
    with pytest.raises(UserError, match="state dict"):
        open_network(tmp_path / "loop.pth", BackboneConfig("resnet18"))


def test_one_dataset_that_fails_does_not_cost_the_others(
    trained: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from selfsup.engine import evaluation as module

    real, calls = module.evaluate_opened, []

    def failing(config: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(config.data.name)
        if config.data.name == "shapes":
            raise RuntimeError("sizes differ")
        return real(config, *args, **kwargs)

    monkeypatch.setattr(module, "evaluate_opened", failing)
    settings = [f"checkpoint={trained}", "data=digits,shapes,cifar10", "data.limit=20", "run_dir=t", *QUICK]
    table = transfer(settings, ["knn"], progress=False)
    assert list(table.records) == ["digits"]
    assert table.left_out["shapes"] == "RuntimeError: sizes differ"
    assert "digits" in Path("t/transfer.md").read_text("utf-8")


@pytest.mark.parametrize("error", [UserError("too many images are damaged."), RuntimeError("no memory")])
def test_features_that_were_computed_before_a_failure_are_kept(
    error: Exception, trained: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from selfsup.exporting import embedding

    real, calls = embedding.extract_features, []

    def failing(network: nn.Module, block: Any, **settings: Any) -> Any:
        calls.append(len(block))
        if len(calls) == 2:
            raise error
        return real(network, block, **settings)

    monkeypatch.setattr(embedding, "extract_features", failing)
    with pytest.raises(type(error)) as raised:
        selfsup.embed([f"checkpoint={trained}", "accelerator=cpu"], "e.npz", progress=False)
    assert [path.name for path in here.iterdir()] == ["e-part.npz"]
    found = selfsup.read_embeddings("e-part.npz")
    assert len(found.features) == len(found.split) == calls[0]
    assert isinstance(error, RuntimeError) or "e-part.npz" in str(raised.value)
