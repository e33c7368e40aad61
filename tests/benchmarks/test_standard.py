"""The table on real photographs: a run that is stopped goes on, one that is done is not repeated."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")


@pytest.fixture
def standard(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import standard

    monkeypatch.setattr(standard, "KEPT", Path("no results are kept"))
    yield standard
    for name in ("standard", "setups", "measure", "tiny_images"):
        sys.modules.pop(name, None)


def test_a_run_goes_on_with_its_seconds_and_is_done_once(
    standard: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from tiny_images import write_images

    write_images(tmp_path, "cifar10")
    out, run = tmp_path / "out", standard.Run("cores", "cifar10", "simclr", "selfsup", 0)
    once = standard.Clock.on_train_epoch_end

    def stopped(clock: Any, trainer: Any, module: Any) -> None:
        if trainer.current_epoch == 1:
            raise RuntimeError("killed")
        once(clock, trainer, module)
        clock.known["seconds"] = 1000.0

    with monkeypatch.context() as patch:
        patch.setattr(standard.Clock, "on_train_epoch_end", stopped)
        with pytest.raises(RuntimeError, match="killed"):
            standard.work(run, out, tmp_path, True)
    assert not run.result(out).exists()
    standard.work(run, out, tmp_path, True)
    result = json.loads(run.result(out).read_text())
    assert result["training"]["seconds"] > 1000
    assert (result["training"]["steps"], result["training"]["epochs"]) == (2, 2)
    assert (result["train_images"], result["test_images"]) == (150, 30)
    monkeypatch.setattr(standard, "load_config", None)
    standard.work(run, out, tmp_path, True)  # nothing is done again
    rival = standard.Run("cores", "cifar10", "simclr", "lightly", 0)
    text = standard.table([run, rival], out)
    assert "REHEARSAL" in text
    assert "JPEG copy" in text
    assert "Not measured yet: simclr by lightly." in text
    rows = json.loads((out / "cores" / "cifar10" / "standard.json").read_text())["rows"]
    assert [row["seeds"] for row in rows] == ["1 of 1"]
    assert rows[0]["kNN, k = 200, %"] == f"{100 * result['knn_200']:.1f}"


def test_what_is_kept_of_another_machine_is_shown_where_there_is_no_result_of_this_one(
    standard: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(standard, "KEPT", tmp_path / "kept")
    first, second = (standard.Run("cores", "cifar10", "simclr", "selfsup", seed) for seed in (0, 1))
    machine = {"processor": "theirs", "GPU": "none", "torch": "2"}
    own = {"machine": {**machine, "processor": "ours"}, "knn_20": 0.5}
    kept = {"knn_20": 0.25, "knn_200": 0.5, "linear_probe": 0.5, "training": {}, "machine": machine, "rehearsal": False}
    for file, result in [
        (first.result(tmp_path / "kept"), kept),
        (second.result(tmp_path / "kept"), kept),
        (second.result(tmp_path / "out"), {**kept, **own}),
    ]:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(result))
    text = standard.table([first, second], tmp_path / "out")
    assert "37.5 (25.0 to 50.0)" in text
    assert "ours, GPU none" in text
    assert "theirs, GPU none" in text
    assert "Not measured yet" not in text


def test_the_kept_results_are_of_runs_that_there_are(standard: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Path(BENCHMARKS) / "kept" / "standard"
    files = sorted(kept.rglob("*.json"))
    assert files
    for file in files:
        result = json.loads(file.read_text())
        run = standard.Run(**{name: result[name] for name in ("budget", "data", "method", "by", "seed")})
        assert run.result(kept) == file
        assert not result["rehearsal"]


def test_a_checkpoint_within_an_epoch_keeps_the_seconds_until_there(
    standard: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(standard.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(standard, "processor_seconds", lambda: now[0] / 2)
    clock = standard.Clock()
    assert clock.state_dict()["seconds"] == 0.0
    clock.on_train_start(None, None)
    now[0] = 107.0
    kept = clock.state_dict()
    assert (kept["seconds"], kept["processor_seconds"]) == (7.0, 3.5)
    later = standard.Clock()
    later.load_state_dict(kept)
    now[0] = 200.0
    later.on_train_start(None, None)
    now[0] = 201.0
    assert later.state_dict()["seconds"] == 8.0
