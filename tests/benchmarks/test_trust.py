"""Trainings that are killed and go on end as if nobody had touched them; the whole campaign is ``kills.py``."""

from __future__ import annotations

import random
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from processes import Running

TRUST = str(Path(__file__).parents[2] / "benchmarks" / "trust")


@pytest.fixture
def kills(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(TRUST)  # where a script finds what lies beside it
    import kills

    return kills


def kill_a_training(words: list[str]) -> None:
    """Kill a training three times and let it go on, in a process that has no graph yet: one that has cannot fork."""
    sys.path.insert(0, TRUST)
    import kills

    out = Path(words[0])
    campaign = kills.Campaign(out / "runs", ["moco"], ["single"], seed=0)
    whole, _, passed = campaign.whole("moco", "single")
    assert {"half of a checkpoint", "rename last.ckpt", "an online evaluation begins"} <= set(passed)
    folder = out / "killed"
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


def test_a_run_killed_in_a_checkpoint_and_in_its_results_ends_as_if_never_killed(tmp_path: Path) -> None:
    done = Running(kill_a_training, [str(tmp_path)], tmp_path).wait()
    assert done.returncode == 0, done.stderr


def test_what_differs_is_found(kills: Any) -> None:
    row = {"faults": ["metrics.csv differs"], "kills": [{"kind": "time", "signals": [9], "target": "group", "rank": 0}]}
    line, total = kills.table([row, {"faults": [], "kills": []}])
    assert line == total | {"moment": "a random time"}
    assert (line["kills"], line["SIGKILL"], line["SIGTERM"], line["in runs that lost something"]) == (1, 1, 0, 1)
