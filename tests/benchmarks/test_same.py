"""The comparison of two commits finds what differs, wherever it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")


@pytest.fixture
def same(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)  # where a script finds what lies beside it
    import same

    return same


@pytest.mark.parametrize(
    ("other", "places"),
    [
        ({"a": [torch.ones(2), {"b": 1}]}, []),
        ({"a": [torch.tensor([1.0, 1.0 + 2**-23]), {"b": 1}]}, ["a.0"]),
        ({"a": [torch.ones(2), {"b": 2}]}, ["a.1.b"]),
        ({"a": [torch.ones(2)]}, ["a"]),
        ({"a": [torch.ones(2), {"b": 1}], "c": 0}, [".c is in one only"]),
    ],
)
def test_two_states_differ_where_they_do(same: Any, other: dict[str, object], places: list[str]) -> None:
    assert same.unlike({"a": [torch.ones(2), {"b": 1}]}, other) == places


def test_records_are_told_apart_by_how_they_were_measured_and_times_are_left_out(same: Any, tmp_path: Path) -> None:
    records = [
        {"protocol": "knn", "split": "test", "metric": "top1", "k": k, "value": k / 100, "seconds": 3.0}
        for k in (1, 20)
    ]
    records.append({"protocol": "probe", "split": "test", "metric": "seconds", "value": 1.0})
    (tmp_path / "results.json").write_text(json.dumps({"results": records}))
    found = same.records_of(tmp_path)
    assert sorted(found.values()) == [0.01, 0.2]
    assert len(found) == 2


def test_rows_are_those_of_the_file(same: Any, tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,train/loss\n1,0.5\n")
    assert same.rows_of(tmp_path / "metrics.csv") == [{"step": "1", "train/loss": "0.5"}]
