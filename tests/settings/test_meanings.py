"""Words that people know from elsewhere: each gets what it means here, as it would be typed."""

from __future__ import annotations

from pathlib import Path

import pytest

from selfsup.cli import main
from selfsup.errors import UserError
from selfsup.settings.early import known, refuse_mistakes
from selfsup.settings.meanings import meant_by

TRAINING = {
    "epochs=3": "trainer.max_epochs=3",
    "trainer.epochs=3": "trainer.max_epochs=3",
    "batch=64": "batch_size=64",
    "data.batch_size=64": "batch_size=64",
    "lr=0.1": "optimizer.lr=0.1",
    "optimizer.learning_rate=0.1": "optimizer.lr=0.1",
    "wd=1e-4": "optimizer.weight_decay=1e-4",
    "warmup=10": "optimizer.warmup_epochs=10",
    "model=resnet50": "backbone=resnet50",
    "model=ResNet-50": "backbone=resnet50",
    "model=resnet34": "backbone.name=resnet34",
    "model=moco": "method=moco",
    "model=no_such": "backbone=NAME",
    "arch=vit_small_patch16_224": "backbone.name=vit_small_patch16_224",
    "algorithm=BYOL": "method=byol",
    "loss=infonce": "objective=NAME",
    "dataset=cifar10": "data=cifar10",
    "dataset=./pictures": "data=image_folder data.root=./pictures",
    "data_dir=/x y": "data.root=/x y",
    "optim=adamw": "optimizer=adamw",
    "aug=byol": "augment=byol",
    "preset=demo": "experiment=demo",
    "logging=wandb": "logger.wandb=true",
    "wandb=myproject": "logger.wandb=true",
    "wandb=false": "logger.wandb=false",
    "gpus=2": "trainer.devices=2",
    "gpus=0,1": "trainer.devices=[0,1]",
    "gpus=auto": "trainer.devices=auto",
    "gpu=1": "trainer.devices=[1]",
    "device=cuda": "trainer.accelerator=gpu",
    "device=cpu": "trainer.accelerator=cpu",
    "workers=4": "data.workers=4",
    "temperature=0.2": "method.temperature=0.2",
    "tau=0.2": "method.temperature=0.2",
    "image_size=96": "data.image_size=96",
    "subset=100": "data.limit=100",
    "weights=a.pth": "backbone.from=a.pth",
    "pretrained=true": "backbone.from=timm:NAME",
    "checkpoint=RUN": "resume=RUN",
    "amp=true": "trainer.precision=16-mixed",
    "amp=false": "trainer.precision",
    "out=runs/a": "run_dir=runs/a",
    "name=a": "run_dir=runs/a",
}
EVALUATION = {
    "k=5": "eval.knn.k=5",
    "temperature=0.1": "eval.knn.temperatures=0.1",
    "batch_size=5": "eval.batch_size=5",
    "weights=a.pth": "checkpoint=a.pth",
    "ckpt=RUN": "checkpoint=RUN",
    "model=resnet34": "checkpoint=timm:resnet34",
    "gpus=1": "accelerator=gpu",
    "device=cuda:0": "accelerator=gpu",
    "lr=0.1": "eval.linear_probe.learning_rates=0.1",
}


@pytest.mark.parametrize(
    ("kind", "word", "meant"),
    [("train", *pair) for pair in TRAINING.items()] + [("evaluate", *pair) for pair in EVALUATION.items()],
)
def test_a_word_from_elsewhere_gets_what_it_means_here(kind: str, word: str, meant: str) -> None:
    key, _, text = word.partition("=")
    there = known(kind)
    found = meant_by(key, text, there)
    assert meant in found, found
    for line in found:  # what is advised is accepted
        if "NAME" not in line and "=" in line:
            refuse_mistakes(line.split(" data.root")[0].split("\n"), kind)
    with pytest.raises(UserError, match="There is no setting") as error:
        refuse_mistakes([word], kind)
    assert repr(meant) in str(error.value)


@pytest.mark.parametrize("key", ["warmth", "xyz", "sharpness", "x.y", "knn"])
def test_nothing_is_far_fetched(key: str) -> None:
    assert meant_by(key, "1", known()) == []


def test_a_key_of_a_file_comes_without_a_text() -> None:
    assert meant_by("model", "", known()) == ["method=NAME", "backbone=NAME"]
    assert meant_by("batchsize", "", known()) == ["batch_size"]


LINES = {
    "method moco": "Did you mean 'selfsup methods moco'?",
    "eval RUN": "Did you mean 'selfsup evaluate RUN'?",
    "resume RUN batch_size=4": "Did you mean 'selfsup train resume=RUN batch_size=4'?",
    "linear_probe RUN": "Did you mean 'selfsup evaluate RUN --only linear_probe'?",
    "moco": "Did you mean 'selfsup train method=moco'?",
    "cifar10": "Did you mean 'selfsup train data=cifar10'?",
    "pictures": "Did you mean 'selfsup train pictures'?",
    "method=moco": "Did you mean 'selfsup train method=moco'?",
    "neighbors RUN": "Did you mean 'selfsup neighbours RUN'?",
    "version": "Did you mean 'selfsup --version'?",
    f"{'long' * 100}": "There is no command",
    "trian": "Did you mean 'train'?",
    "train method moco": "here method=moco",
    "train method = moco": "here method=moco",
    "train method:moco": "here method=moco",
    "train lr 0.1": "here optimizer.lr=0.1",
    "train wandb": "here logger.wandb=true",
    "train pictures moco": "here method=moco",
    "train optimizer.lr": "here optimizer.lr=VALUE",
    "train data": "here data=NAME",
    "train logger=wandb": "write logger.wandb=true",
    "train online=5": "such as online.every_epochs=…",
    "train data=pictures": "Did you mean 'data=image_folder data.root=pictures'?",
    "train data=imagenet": "Did you mean 'data=image_folder data.root=DIR'?",
    "train trainer=ddp": "Did you mean 'trainer.strategy=ddp'?",
    "train optimiser.lrr=1": "Did you mean 'optimizer.lr=1'?",
    "train data.x=1": "There is no setting 'data.x'; see --help.",
    "train optimizer.x=1": "optimizer has name, lr, ",
    "train config=c.yaml": "write --config c.yaml",
    "train eval.knn.k=5": "it is one of selfsup evaluate",
    "knn RUN optimizer.lr=1": "it is one of selfsup train",
    "cka RUN RUN ckpt=RUN": "Did you mean 'checkpoint=RUN'?",
    "transfer RUN data=digits,cifar": "Did you mean 'cifar10'?",
    "train --gpus 2": "There is no option '--gpus' here; settings are written key=value: trainer.devices=2.",
    "train --method=moco": "settings are written key=value: method=moco.",
    "train --batch_size 3": "Did you mean '--batch-size'?",
    "train --weight-decay 0.1": "settings are written key=value: optimizer.weight_decay=0.1.",
    "train --name run lr=3": "settings are written key=value: run_dir=runs/run.",
    "train --seed 3": "settings are written key=value: seed=3.",
    "evaluate RUN --protocols knn": "Did you mean '--only'?",
    "knn resnet50 data=digits": "a network of timm's is written timm:resnet50",
    "knn --k 3": "settings are written key=value: eval.knn.k=3",
    "train --print-config=x": "--print-config takes no value.",
    "compare --sort x": "There is no option '--sort' here",
}


@pytest.mark.parametrize("line", LINES)
def test_a_line_gets_a_sentence(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    assert main(line.split()) == 2
    err = capsys.readouterr().err
    assert LINES[line] in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("line", ["train help", "help train", "knn help", "methods help"])
def test_help_as_a_word(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.split()) == 0
    assert capsys.readouterr().out
