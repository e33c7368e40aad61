"""The command line: what it does, and that every mistake gets one clear sentence and exit code 2."""

from __future__ import annotations

import json
import os
import pickle
import pkgutil
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import processes
import pytest
import torch
from PIL import Image
from tiny import TINY, tiny

from selfsup import commands
from selfsup.checkpoint import read_checkpoint
from selfsup.cli import main
from selfsup.config import load_config, to_yaml
from selfsup.engine.training import train
from selfsup.eval import read_results

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in an empty folder and return its exit code, output and errors."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        code = main(list(arguments))
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tiny SimCLR run that no test may change."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    return train(load_config([*TINY, f"run_dir={folder}"]))


@pytest.mark.pictures
def test_the_whole_path(run: Run, tmp_path: Path) -> None:
    for method in ("simclr", "moco"):
        code, out, _ = run("train", *tiny(method), f"run_dir={method}")
        assert code == 0
        assert f"next: selfsup evaluate {method}\n" in out
    assert (tmp_path / "moco" / "figures" / "views.png").stat().st_size > 1000
    assert (tmp_path / "moco" / "figures" / "training.png").stat().st_size > 1000
    environment = json.loads((tmp_path / "moco" / "environment.json").read_text())
    assert environment["versions"]["torch"] == torch.__version__.split("+")[0]

    quick = ["eval.linear_probe.epochs=2", "eval.knn.k=[3]"]
    assert run("knn", "checkpoint=simclr", "eval.knn.k=[3,5]")[0] == 0
    assert {r["k"] for r in read_results("simclr") if r["protocol"] == "knn"} == {3, 5}
    assert run("probe", "checkpoint=moco/checkpoints/last.ckpt", "eval.linear_probe.epochs=2")[0] == 0
    assert [r["protocol"] for r in read_results("moco")] == ["training", "linear_probe"]
    for name in ("simclr", "moco"):
        code, out, _ = run("evaluate", f"checkpoint={name}", *quick)
        assert code == 0
        lines = [line.split()[0] for line in out.partition("measure ")[2].splitlines()[2:] if line]
        assert set(lines[:2]) == {"knn", "linear_probe"}, "accuracies come first"
        assert {"rank_me", "saved:", "next:"} <= set(lines)
        assert (tmp_path / name / "figures" / "neighbours.png").exists()
        assert (tmp_path / name / "figures" / "feature_map.png").exists()
    shapes = ["data=shapes", "data.train_size=72", "data.test_size=40", *quick, "eval.figures=false"]
    assert run("evaluate", "checkpoint=raw_pixels", *shapes, "run_dir=raw")[0] == 0
    untrained = ["checkpoint=untrained", "backbone=resnet_tiny", "backbone.width=4", *shapes, "run_dir=untrained"]
    assert run("evaluate", *untrained)[0] == 0
    code, out, _ = run("compare", "raw", "untrained", "simclr", "moco", "--out", "table")
    assert code == 0
    assert all(name in out for name in ("raw", "untrained", "simclr", "moco"))
    assert {p.name for p in (tmp_path / "table").iterdir()} == {f"comparison.{e}" for e in ("md", "csv", "png", "html")}


def test_a_number_carries_its_protocol(run: Run, trained: Path) -> None:
    run("evaluate", f"checkpoint={trained}", "run_dir=here", "eval.linear_probe.epochs=2")
    for record in read_results("here"):
        assert {"split", "metric", "value", "data", "seed", "epoch", "seconds", "image_size"} <= record.keys()
    knn = next(r for r in read_results("here") if r["protocol"] == "knn" and r["primary"])
    assert (knn["k"], knn["temperature"], knn["split"], knn["epoch"]) == (20, 0.07, "test", 2)
    probe = next(r for r in read_results("here") if r["protocol"] == "linear_probe")
    assert probe["selected_on"] == "holdout"


def test_multirun_trains_every_combination(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = ["train", "--multirun", "method=simclr,moco", "seed=0,1", "run_dir=it's my sweep"]
    done = processes.run([*sweep, *TINY, "trainer.max_epochs=1", "++method.hidden_dim=8"], tmp_path)
    assert done.returncode == 0, done.stderr
    sweep = tmp_path / "it's my sweep"
    assert not (tmp_path / "runs").exists()
    runs = sorted(p for p in sweep.iterdir() if (p / "checkpoints" / "last.ckpt").exists())
    assert [p.name for p in runs] == [f"method={m},seed={s}" for m in ("moco", "simclr") for s in (0, 1)]
    kinds = [(c["method"]["name"], c["seed"]) for c in (read_checkpoint(p)["selfsup"]["config"] for p in runs)]
    assert kinds == [("moco", 0), ("moco", 1), ("simclr", 0), ("simclr", 1)]
    table = done.stdout.partition("online/knn")[2]
    found = [float(line.split()[1]) for line in table.splitlines() if line.startswith("method=")]
    assert len(found) == 4
    assert found == sorted(found, reverse=True), "the best comes first"
    (sweep / "notes").mkdir()
    monkeypatch.chdir(tmp_path)
    _, _, next_command = done.stdout.strip().rpartition("next: selfsup ")
    assert shlex.split(next_command) == ["compare", sweep.name]
    assert main(shlex.split(next_command)) == 0
    out = capsys.readouterr().out
    assert not list(tmp_path.rglob("comparison*")), "without --out nothing is written"
    assert "notes is no run and left out" in out
    assert out.count(", 2 seeds") == 2, "what differs in the seed alone is averaged"


def test_multirun_through_a_launcher(tmp_path: Path) -> None:
    """Submitit's local executor: a job in a process of its own, which imports a file of one's own."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "my_method.py").write_text(
        "from dataclasses import dataclass\n"
        "from selfsup.methods.simclr import SimCLR, SimCLRConfig\n"
        "from selfsup.registry import methods\n"
        "@dataclass\n"
        "class MineConfig(SimCLRConfig):\n"
        "    name: str = 'launched'\n"
        "@methods.register('launched', MineConfig, augment='simclr')\n"
        "class Mine(SimCLR):\n"
        "    'A method of one\\'s own.'\n"
    )
    sweep = ["train", "--multirun", "--import", "mine/my_method.py", "hydra/launcher=submitit_local"]
    done = processes.run([*sweep, "method=launched", "seed=7", *TINY, "trainer.max_epochs=1"], tmp_path)
    assert done.returncode == 0, done.stderr
    (sweep,) = (tmp_path / "runs").iterdir()
    (run,) = [p for p in sweep.iterdir() if (p / "checkpoints" / "last.ckpt").exists()]
    assert read_checkpoint(run)["selfsup"]["config"]["seed"] == 7


def test_a_launcher_that_is_not_there(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["selfsup"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # is set by a sweep, and taken back after the test
    code, _, err = run("train", "--multirun", "hydra/launcher=submitit_slrm", "seed=0,1")
    assert code == 2, err
    assert "hydra/launcher=submitit_slrm" in err
    assert "pip install hydra-submitit-launcher" in err
    assert len(err.splitlines()) == 1


def test_a_method_in_a_file_of_ones_own(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        '''
from dataclasses import dataclass

from selfsup.functional import nt_xent
from selfsup.methods import Method, MethodConfig, Parts
from selfsup.nn import projection_head
from selfsup.registry import methods
from selfsup.types import StepOutput


@dataclass
class MineConfig(MethodConfig):
    """Mine."""

    name: str = "mine"
    warmth: float = 0.5


@methods.register("mine", MineConfig, augment="byol")
class Mine(Method):
    """A method of one's own."""

    def __init__(self, config, parts: Parts):
        super().__init__(parts)
        self.warmth = config.warmth
        self.head = projection_head([self.backbone.dim, 8])

    def step(self, views, batch):
        z1, z2 = (self.head(self.backbone(view.image)) for view in views)
        return StepOutput(nt_xent(z1, z2, self.warmth), {"warmth": z1.new_tensor(self.warmth)})
'''
    )
    code, _, err = run("train", "--import", "mine.py", "method=mine", "method.warmth=0.7", *TINY, "run_dir=r")
    assert code == 0, err
    config = read_checkpoint("r")["selfsup"]["config"]
    assert config["method"] == {"name": "mine", "warmth": 0.7}
    assert config["augment"]["recipe"] == "byol"
    assert "train/warmth" in (tmp_path / "r" / "metrics.csv").read_text()
    assert "A method of one's own." in run("methods", "--import", "mine.py")[1]


def test_one_s_own_folder_of_images(run: Run, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    for name in range(48):
        pixels = torch.randint(0, 256, (40, 30, 3), generator=generator, dtype=torch.uint8).numpy()
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{name}.png")
    (tmp_path / "images" / "broken.jpg").write_bytes(b"\xff\xd8\xff not a picture")
    settings = [s for s in TINY if not s.startswith("data.")]
    code, _, err = run("train", "data=image_folder", "data.root=images", "data.image_size=32", *settings, "run_dir=r")
    assert code == 0, err
    code, out, _ = run("evaluate", "checkpoint=r")  # unlabelled: the diagnostics alone
    assert code == 0
    assert {r["protocol"] for r in read_results("r")} == {"training", "diagnostics"}
    assert "saved: r/results.json" in out
    assert "next: selfsup compare r OTHER_RUN, or every protocol: the same command with --all" in out
    assert run("evaluate", "r", "--all", "--only", "knn")[0] == 2
    assert run("evaluate", "r", "--all")[0] == 0
    rest = {"layers", "invariance", "dense_alignment", "patch_pca", "shortcuts"}
    assert {r["protocol"] for r in read_results("r")} == {"training", "diagnostics", *rest}


@pytest.mark.parametrize(
    "command",
    [module.name for module in pkgutil.iter_modules(commands.__path__)],
)
def test_help(command: str, run: Run) -> None:
    asked = [run(command, "--help"), run(command, "help"), run("help", command), run(command, "-h")]
    assert {code for code, _, _ in asked} == {0}
    out = asked[0][1]
    assert {other for _, other, _ in asked} == {out}
    assert f"selfsup {command}" in out
    assert "--import FILE" in out
    assert f"  {command} " in run("--help")[1]
    assert out.partition("\n")[0] in run()[1]


def test_methods_lists_and_explains(run: Run) -> None:
    out = run("methods")[1]
    assert "simclr" in out
    assert "moco" in out
    assert "method.queue_size=65536" in run("methods", "moco")[1]


MISTAKES = {
    "unknown command": (["trian"], "Did you mean 'train'"),
    "misspelt method": (["train", "method=simclrr"], "Did you mean 'simclr'"),
    "misspelt data": (["train", "data=shape"], "Did you mean 'shapes'"),
    "misspelt key": (["train", "trainer.max_epoch=3"], "Did you mean 'trainer.max_epochs=3'"),
    "misspelt key of a group": (["train", "method=moco", "method.queue_sise=9"], "Did you mean 'method.queue_size=9'"),
    "key of another method": (["train", "method.queue_size=9"], "method.queue_size"),
    "unknown top key": (["train", "batchsize=9"], "Did you mean 'batch_size=9'"),
    "wrong type": (["train", "trainer.max_epochs=many"], "trainer.max_epochs"),
    "wrong type in a list": (["knn", "checkpoint=untrained", "data=shapes", "eval.knn.k=[a]"], "knn.k"),
    "no equals sign": (["train", "moco"], "moco"),
    "unknown option": (["train", "--methd", "moco"], "--methd"),
    "unknown experiment": (["train", "experiment=demmo"], "Did you mean 'demo'"),
    "unknown network": (["train", *TINY, "backbone.name=resnet81"], "backbone.name"),
    "unknown optimiser": (["train", "optimizer.name=adamv", *TINY], "Did you mean"),
    "unknown scaling": (["train", "optimizer.scaling=linaer", *TINY], "Did you mean 'linear'"),
    "unknown recipe": (["train", "augment.recipe=simcrl", *TINY], "Did you mean"),
    "unknown recipe value": (["train", "augment.override.blurp=0", *TINY], "blur_p"),
    "unknown Kornia name": (["train", "augment.extra=[{name: RandomRotatoin}]", *TINY], "RandomRotation"),
    "bad precision": (["train", "trainer.precision=13", *TINY], "trainer"),
    "sharding as Lightning does it": (["train", "trainer.strategy=fsdp_cpu_offload", *TINY], "trainer.strategy=fsdp"),
    "optimiser of whole weights": (["train", *TINY, "trainer.strategy=fsdp", "optimizer.name=adafactor"], "lars"),
    "compiled parts": (["train", *TINY, "trainer.strategy=fsdp", "trainer.compile=true"], "trainer.compile"),
    "bad strategy": (["train", "trainer.strategy=dpd", *TINY], "trainer"),
    "batch larger than the data": (["train", *TINY, "batch_size=999"], "batch_size"),
    "queue smaller than a batch": (["train", "method=moco", *TINY, "method.queue_size=8"], "method.queue_size"),
    "missing folder": (["train", "data=image_folder", "data.root=nowhere"], "nowhere"),
    "no folder": (["train", "data=image_folder"], "data.root"),
    "limit beyond the data": (["train", *TINY, "data.limit=9999"], "data.limit"),
    "missing download": (["train", "data=cifar10", "data.root=nowhere"], "data.download"),
    "no checkpoint": (["probe"], "checkpoint="),
    "missing checkpoint": (["probe", "checkpoint=runs/none"], "runs/none"),
    "resume of nothing": (["train", "resume=runs/none"], "runs/none"),
    "no runs": (["compare"], "run"),
    "a name too long": (["compare", "x" * 300], "cannot be a file: File name too long"),
    "not a run": (["compare", "."], "."),
    "unknown method's help": (["methods", "simclrr"], "Did you mean 'simclr'"),
    "missing import": (["train", "--import", "gone.py"], "gone.py"),
    "missing config": (["train", "--config", "gone.yaml"], "gone.yaml"),
    "unknown accelerator": (
        ["knn", "checkpoint=untrained", "accelerator=tpu", "data=shapes", "data.train_size=9"],
        "accelerator",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_one_clear_sentence(mistake: str, run: Run, tmp_path: Path) -> None:
    arguments, expected = MISTAKES[mistake]
    code, _, err = run(*arguments)
    lines = [line for line in err.splitlines() if line.startswith("selfsup ")]
    assert code == 2, err
    assert len(lines) == 1, err
    assert expected in lines[0]
    assert not list(tmp_path.iterdir()), "a mistake leaves nothing behind"


def test_an_empty_folder_is_named(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    code, _, err = run("train", "data=image_folder", "data.root=empty")
    assert code == 2
    assert "empty" in err


def test_an_existing_run_is_never_overwritten(run: Run, trained: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in trained.rglob("*")}
    code, _, err = run("train", *TINY, f"run_dir={trained}")
    assert code == 2
    assert f"resume={trained}" in err
    assert {p: p.stat().st_mtime_ns for p in trained.rglob("*")} == before


class _Malice:
    def __reduce__(self) -> Any:
        return (os.system, ("touch executed",))


def _write_truncated(path: Path, good: Path) -> None:
    path.write_bytes((good / "checkpoints" / "last.ckpt").read_bytes()[:5000])


def _write_malicious(path: Path, good: Path) -> None:
    torch.save({"state_dict": {}, "selfsup": _Malice()}, path)


def _write_old_pickle(path: Path, good: Path) -> None:
    path.write_bytes(pickle.dumps(_Malice()))


def _write_text(path: Path, good: Path) -> None:
    path.write_text("this is no checkpoint")


def _write_empty(path: Path, good: Path) -> None:
    path.write_bytes(b"")


def _write_foreign(path: Path, good: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, path)


@pytest.mark.parametrize(
    "write", [_write_truncated, _write_malicious, _write_old_pickle, _write_text, _write_empty, _write_foreign]
)
@pytest.mark.parametrize("use", ["knn checkpoint=", "train resume="])
def test_a_bad_checkpoint_is_refused(write: Any, use: str, run: Run, trained: Path, tmp_path: Path) -> None:
    write(tmp_path / "bad.ckpt", trained)
    command, key = use.split()
    code, _, err = run(command, f"{key}bad.ckpt")
    assert code == 2
    assert "bad.ckpt" in err
    assert not (tmp_path / "executed").exists()


def test_a_checkpoint_of_another_network_is_refused(run: Run, trained: Path, tmp_path: Path) -> None:
    content = read_checkpoint(trained)
    content["selfsup"]["config"]["backbone"]["width"] = 8
    torch.save(content, tmp_path / "other.ckpt")
    code, _, err = run("knn", "checkpoint=other.ckpt")
    assert code == 2
    assert "other.ckpt" in err


def test_a_full_disk_keeps_the_checkpoint_before(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = torch.save, []

    def full(content: Any, file: Any, *rest: Any, **more: Any) -> None:
        calls.append(file)
        if len(calls) > 1:
            file.write_bytes(b"half of it")
            raise OSError(28, "No space left on device")
        original(content, file, *rest, **more)

    monkeypatch.setattr("selfsup.checkpoint.torch.save", full)
    code, _, err = run("train", *TINY, "run_dir=r")
    assert code == 2
    assert "No space left" in err
    assert read_checkpoint("r")["selfsup"]["epochs_done"] == 1
    assert [p.name for p in (tmp_path / "r" / "checkpoints").iterdir()] == ["last.ckpt"]


def test_no_permission_to_write(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)  # root may write anywhere, so a real folder would prove nothing
    code, _, err = run("train", *TINY, "run_dir=r")
    assert code == 2
    assert "run_dir" in err
    assert "Permission denied" in err


def test_a_loss_that_is_not_finite_ends_the_run(run: Run) -> None:
    code, _, err = run("train", *TINY, "optimizer.lr=1e30", "optimizer=sgd", "online.every_epochs=0", "run_dir=r")
    assert code == 2
    assert "not finite" in err
    assert "optimizer.lr" in err
    assert "the first place is the output of " in err
    code, out, _ = run("replay", "r")
    assert code == 1
    assert "loss: nan (as in the run)" in out
    assert out.splitlines()[-1] == "the run said the same"


def test_a_saved_configuration_with_a_stranger_s_key(run: Run, tmp_path: Path) -> None:
    text = to_yaml(load_config(TINY)).replace("batch_size:", "batchsize:")
    (tmp_path / "c.yaml").write_text(text)
    code, _, err = run("train", "--config", "c.yaml")
    assert code == 2
    assert "batch_size" in err
