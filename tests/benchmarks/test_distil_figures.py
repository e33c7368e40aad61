"""The table of distillation: as many core-seconds for each student, and nothing done twice."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from selfsup.data import load_splits

BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")


@pytest.fixture
def distil(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import distil

    monkeypatch.setattr(distil, "KEPT", Path("no results are kept"))
    yield distil
    for name in ("distil", "standard", "setups", "measure", "tiny_images"):
        sys.modules.pop(name, None)


def test_students_are_measured_once_beside_their_teacher(
    distil: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from tiny_images import write_images

    write_images(tmp_path, "cifar10")
    monkeypatch.setattr(distil, "TINY", ("data.limit=null", "method.queue_size=128"))
    monkeypatch.setattr(distil, "BANK", 40)
    labels: list[set[int]] = []
    once = distil.knn
    monkeypatch.setattr(distil, "knn", lambda bank, *rest: labels.append({*bank.labels.tolist()}) or once(bank, *rest))
    plan = distil.Plan(tmp_path / "out", tmp_path, True)
    plan.out.mkdir()
    names = ("untrained", "teacher", "alone", "contrast of cells")
    for name in names:
        distil.work(plan, name)
    found = {name: json.loads((plan.out / f"{name}.json").read_text()) for name in names}
    assert 3.9 < found["teacher"]["weights"] / found["alone"]["weights"] < 4.1
    assert found["alone"]["training"]["epochs"] == 2
    assert found["alone"]["train_images"] == 40
    assert len(labels[0]) > 1  # neighbours of all classes
    assert labels[0] == {*load_splits(distil.load_config(plan.settings("alone")).data).train.labels.tolist()}
    rows = list(distil.rows(plan.out))
    assert [row["network"] for row in rows] == ["untrained", "student, alone", "student, contrast of cells", "teacher"]
    assert rows[-1]["kNN, %"] == f"{100 * found['teacher']['knn']:.1f}"
    monkeypatch.setattr(distil, "load_config", None)
    for name in names:
        distil.work(plan, name)  # nothing is done again


def test_the_student_that_is_taught_has_the_core_seconds_of_the_one_alone(
    distil: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cost = {"alone": 10.0, "distilled": 7.0, "similarity only": 11.0}
    monkeypatch.setattr(distil, "train", lambda plan, name, *_: {"processor_seconds": cost[name]})
    plan = distil.Plan(tmp_path, tmp_path, False)
    assert distil.epochs_of(plan, "alone") == distil.EPOCHS == 3
    assert distil.epochs_of(plan, "distilled") == 4
    assert distil.epochs_of(plan, "similarity only") == 2
