"""Trainings that are killed, commands on damaged files, a run that is watched; all of it is in ``benchmarks/trust``."""

from __future__ import annotations

import json
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


def test_every_method_is_killed_in_its_smallest_form(kills: Any) -> None:
    assert {"supcon", "moco_v1", "vicreg"} <= set(kills.all_methods())
    assert "method.queue_size=48" in kills.smallest("moco")


def try_faults(words: list[str]) -> int:
    sys.path.insert(0, TRUST)
    import faults

    sys.argv = ["faults.py", *words]
    return faults.main()


FAULTS = (
    "disk, training: half of a checkpoint, time 6",
    "signals: SIGTERM at open .views",
    "files of a run: results.json: a value that is text",
    "checkpoints: without optimizer_states",
    "files that change: a cache cut short",
    "several: three resumes",
)


@pytest.mark.slow
def test_faults_of_each_kind_end_in_a_sentence_or_do_no_harm(tmp_path: Path) -> None:
    done = Running(try_faults, ["--out", str(tmp_path), "--only", ";".join(FAULTS)], tmp_path).wait(600)
    assert done.returncode == 0, done.stdout + done.stderr
    tried = json.loads((tmp_path / "faults.json").read_text())["faults"]
    assert len({row["group"] for row in tried}) == len(tried) == len(FAULTS)


def test_what_did_harm_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(TRUST)
    import faults
    import lab

    said = lab.Ended(1, "Traceback (most recent call last):\nKeyError: 'x'")
    assert lab.refused(said) == ["a traceback, exit code 1: KeyError: 'x'"]
    assert lab.refused(lab.Ended(None, "")) == ["it did not end, or left processes behind"]
    assert lab.refused(lab.Ended(0, "done")) == ["accepted: done"]
    assert lab.refused(lab.Ended(0, "done"), codes=(0, 2)) == []
    assert lab.refused(lab.Ended(2, "selfsup: no"), "a.csv") == ["does not name a.csv: selfsup: no"]
    assert lab.refused(lab.Ended(2, "selfsup: a.csv is broken"), "a.csv") == []
    rows = [{"group": "a", "fault": "x", "faults": ["no"]}, {"group": "b", "fault": "y", "faults": []}]
    assert faults.table(rows)[-1] == {"faults": "all", "tried": 2, "survived": 1}
