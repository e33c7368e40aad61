"""The file of a run's metrics, when it is stopped while it is written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from selfsup.engine import loggers
from selfsup.errors import UserError
from selfsup.report.metrics import read_metrics


@pytest.mark.parametrize(
    ("stop", "seen"), [(KeyboardInterrupt(), KeyboardInterrupt), (OSError(28, "No space left on device"), UserError)]
)
def test_a_run_that_is_stopped_while_columns_are_added_leaves_a_file_that_can_be_read(
    stop: BaseException, seen: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(path: Path, text: str) -> None:
        raise stop

    logger = loggers.MetricsCsv(tmp_path)
    logger.log_metrics({"loss": 2.0}, step=0)
    monkeypatch.setattr(loggers, "replace_text", stopped)
    with pytest.raises(seen):
        logger.log_metrics({"loss": 1.0, "online/knn": 0.5}, step=1)
    assert [row["loss"] for row in read_metrics(tmp_path / "metrics.csv").rows] == ["2.0"]
    monkeypatch.undo()
    logger.finalize("failed")  # as Lightning does on the way out
    rows = read_metrics(tmp_path / "metrics.csv").rows
    assert [(row["step"], row["loss"], row["online/knn"]) for row in rows] == [("0", "2.0", ""), ("1", "1.0", "0.5")]


def test_a_pipe_in_the_place_of_the_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "metrics.csv")
    with pytest.raises(UserError, match="it is no file"):
        loggers.MetricsCsv(tmp_path, resumed_step=3).log_metrics({"loss": 2.0}, step=3)
