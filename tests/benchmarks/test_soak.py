"""A training that is watched for long: what stays flat and what grows are told apart."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TRUST = str(Path(__file__).parents[2] / "benchmarks" / "trust")


@pytest.fixture
def soak(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(TRUST)
    import soak

    return soak


def flat(soak: Any, samples: list[Any]) -> list[bool]:
    return [row["flat"] for row in soak.verdict(samples)]


def test_what_grows_is_found(soak: Any) -> None:
    """Forty minutes of a sample every ten seconds, with noise that has no slope."""
    still = [soak.Sample(10.0 * n, 100 * n, 2.0 * n, 900 + n % 3, 8 + n % 2, 12) for n in range(240)]
    assert flat(soak, still) == [True] * 4
    for number, change in enumerate(
        (
            lambda s: {"memory_mb": s.memory_mb + s.seconds * 0.01},  # 18 MB in the half hour that counts
            lambda s: {"handles": s.handles + int(s.seconds) // 600},
            lambda s: {"threads": s.threads + int(s.seconds) // 600},
            lambda s: {"cpu_seconds": s.cpu_seconds * (1 + s.seconds / 10_000)},
        )
    ):
        grown = [dataclasses.replace(sample, **change(sample)) for sample in still]
        assert flat(soak, grown) == [place != number for place in range(4)]


def test_growth_as_it_warms_up_does_not_count_and_a_jump_is_no_slope(soak: Any) -> None:
    samples = [soak.Sample(10.0 * n, 100 * n, 2.0 * n, 900 + 5 * min(n, 20), 8 + (n == 50), 12) for n in range(100)]
    assert flat(soak, samples) == [True] * 4
    with pytest.raises(SystemExit, match="too few"):
        soak.verdict(samples[:6])


def test_the_last_whole_row_says_the_step(soak: Any, tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.csv"
    assert soak.last_step(metrics) is None
    metrics.write_text("loss,step\n")
    assert soak.last_step(metrics) is None
    metrics.write_text("loss,step\n" + "".join(f"0.1234567,{n}\n" for n in range(1000)) + "0.2,10")
    assert soak.last_step(metrics) == 999


def test_it_sees_what_a_process_has(soak: Any, tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step\n3\n")
    text = "import sys; files = [open('/dev/null') for _ in range(50)]; print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", text], start_new_session=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        seen = soak.look(process.pid, tmp_path / "metrics.csv", 0.0)
    assert (seen.step, seen.handles, seen.threads) == (3, 53, 1)
    assert 1 < seen.memory_mb < 100
    assert soak.look(process.pid, tmp_path / "metrics.csv", 0.0) is None


@pytest.mark.slow
def test_a_training_stays_flat_and_one_that_keeps_handles_does_not(soak: Any, tmp_path: Path) -> None:
    seconds = 15.0
    words = soak.settings("resident", tmp_path)
    (tmp_path / "flat").mkdir()
    rows = soak.verdict(soak.watch(tmp_path / "flat", words, seconds, 0.5))
    assert [row["flat"] for row in rows if row["what"] in ("file handles", "threads")] == [True, True], rows
    leaky = tmp_path / "leaky.py"
    leaky.write_text(
        "from selfsup.methods import Method\nkept, usual = [], Method.training_step\n"
        "def step(self, *a):\n    kept.append(open('/dev/null'))\n    return usual(self, *a)\n"
        "Method.training_step = step\n"
    )
    (tmp_path / "leaks").mkdir()
    rows = soak.verdict(soak.watch(tmp_path / "leaks", ["--import", str(leaky), *words], seconds, 0.5))
    (handles,) = [row for row in rows if row["what"] == "file handles"]
    assert not handles["flat"], rows
