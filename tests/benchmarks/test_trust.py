"""Trainings that are killed and go on end as if nobody had touched them; the whole campaign is ``kills.py``."""

from __future__ import annotations

import random
import signal
from pathlib import Path
from typing import Any

import pytest

TRUST = str(Path(__file__).parents[2] / "benchmarks" / "trust")


@pytest.fixture
def kills(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(TRUST)  # where a script finds what lies beside it
    import kills

    return kills


def test_a_run_killed_in_a_checkpoint_and_in_its_results_ends_as_if_never_killed(kills: Any, tmp_path: Path) -> None:
    campaign = kills.Campaign(tmp_path / "runs", ["moco"], ["single"], seed=0)
    whole, _, passed = campaign.whole("moco", "single")
    assert {"half of a checkpoint", "rename last.ckpt", "an online evaluation begins"} <= set(passed)
    folder = tmp_path / "killed"
    folder.mkdir()
    command = ["train", *campaign.settings("moco", "single"), f"run_dir={folder / 'run'}", "resume=auto"]
    for kind, nth, number in (
        ("half of a checkpoint", 2, signal.SIGKILL),
        ("an optimiser's step ends", 2, signal.SIGTERM),
        ("rename results.json", 1, signal.SIGKILL),
    ):
        kill = kills.Kill(kind, nth=nth, signals=[int(number)], target="group")
        campaign.kill(kill, command, folder, random.Random(0))
        assert kill.fired, kind
        assert kill.faults == []
    assert kills.unlike(whole, folder / "run"), "the results are missing"
    assert campaign.finish(command, folder) == []
    assert kills.unlike(whole, folder / "run") == []


def test_what_differs_is_found(kills: Any) -> None:
    row = {"faults": ["metrics.csv differs"], "kills": [{"kind": "time", "signals": [9], "target": "group", "rank": 0}]}
    line, total = kills.table([row, {"faults": [], "kills": []}])
    assert line == total | {"moment": "a random time"}
    assert (line["kills"], line["SIGKILL"], line["SIGTERM"], line["in runs that lost something"]) == (1, 1, 0, 1)
