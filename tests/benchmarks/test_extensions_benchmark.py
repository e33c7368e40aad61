"""The table of objectives: what is measured in pairs, what is missing, and a verdict that few seeds do not give."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import selfsup.methods  # noqa: F401 - fills the registries
from selfsup.config import load_config
from selfsup.registry import negatives, objectives

BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import extensions

    monkeypatch.setattr(extensions, "KEPT", Path("no results are kept"))
    yield extensions
    for name in ("extensions", "measure"):
        sys.modules.pop(name, None)


def keep(bench: Any, out: Path, case: str, way: str, seed: int, value: float) -> None:
    out.mkdir(exist_ok=True)
    found = {"words": bench.words(case, way), "knn": value, "rehearsal": False}
    found["machine"] = {"processor": "a processor", "torch": "2"}
    (out / f"{bench.name_of(case, way, seed)}.json").write_text(json.dumps(found))


def test_every_objective_and_change_of_negatives_has_a_case_whose_settings_are_taken(bench: Any) -> None:
    own = {
        name
        for group in (objectives, negatives)
        for name in group
        if group[name].over and group[name].target.__module__.startswith("selfsup.")
    }
    assert set(bench.CASES) == own - {"multi_positive"}  # which is the plain one of several views
    for case in bench.CASES:
        plain, changed = (load_config(bench.words(case, way)) for way in (bench.PLAIN, bench.CHANGED))
        assert case in (changed.objective.name, changed.negatives.name)
        assert plain.batch_size == changed.batch_size
        assert len(plain.augment.counts) == len(changed.augment.counts)


@pytest.mark.parametrize(
    ("gaps", "said"),
    [
        ([5.0, 5.1], "too few seeds"),
        ([5.0, 5.1, 5.2], "better here"),
        ([-5.0, -5.1, -5.2], "worse here"),
        ([5.0, 0.1, 0.2], "no difference shown"),
        ([5.0, 5.1, -0.1], "no difference shown"),
    ],
)
def test_a_verdict_needs_three_seeds_of_one_sign_beyond_twice_the_error(
    bench: Any, gaps: list[float], said: str
) -> None:
    assert bench.verdict(gaps) == said


def test_the_table_pairs_seeds_and_names_what_is_missing(bench: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for seed, (plain, changed) in enumerate([(0.40, 0.45), (0.42, 0.46), (0.41, 0.47)]):
        keep(bench, out, "dcl", bench.PLAIN, seed, plain)
        keep(bench, out, "dcl", bench.CHANGED, seed, changed)
    keep(bench, out, "mochi", bench.CHANGED, 0, 0.3)  # without its plain run
    text = bench.table(out)
    assert "| `dcl`" in text
    assert "+5.0" in text
    assert "better here" in text
    assert "`mochi`" not in text.partition("Measured on")[2].partition("Not measured")[0]
    assert "mochi (3 of 3 seeds)" in text
    assert "dcl (" not in text
    assert "Measured on: a processor, torch 2." in text


def test_cases_share_a_plain_run_and_results_of_other_settings_do_not_count(bench: Any, tmp_path: Path) -> None:
    assert bench.name_of("macl", bench.PLAIN, 1) == bench.name_of("dcl", bench.PLAIN, 1) == "dcl-plain-seed1"
    assert bench.name_of("macl", bench.CHANGED, 1) == "macl-changed-seed1"
    keep(bench, tmp_path, "dcl", bench.PLAIN, 0, 0.5)
    assert bench.result("sogclr", bench.PLAIN, 0, tmp_path)["knn"] == 0.5
    file = tmp_path / "dcl-plain-seed0.json"
    file.write_text(file.read_text().replace("batch_size=32", "batch_size=64"))
    assert bench.result("dcl", bench.PLAIN, 0, tmp_path) is None
