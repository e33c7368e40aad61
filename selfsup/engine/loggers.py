"""Where the metrics of a training go: ``metrics.csv``, TensorBoard, Weights & Biases."""

from __future__ import annotations

import csv
import io
import os
import warnings
from pathlib import Path
from typing import Any

from lightning_fabric.loggers.logger import rank_zero_experiment
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger
from pytorch_lightning.loggers.csv_logs import CSVLogger, ExperimentWriter

from selfsup.config import LoggerConfig
from selfsup.errors import UserError
from selfsup.report.metrics import read_metrics
from selfsup.writing import replace_text


def build_loggers(config: LoggerConfig, run_dir: Path, resumed_step: int) -> list[Logger]:
    """Return the loggers of a run: its ``metrics.csv`` first, then those that the configuration asks for.

    Raises:
        UserError: A package is missing.
    """
    loggers: list[Logger] = [MetricsCsv(run_dir, resumed_step)]
    try:
        if config.tensorboard:
            loggers.append(TensorBoardLogger(run_dir, name="", version="tensorboard"))
        if config.wandb:
            loggers.append(
                WandbLogger(
                    name=run_dir.name,
                    save_dir=run_dir,
                    project=config.wandb_project,
                    offline=config.wandb_mode == "offline",
                    id=run_dir.name,
                )
            )
    except ModuleNotFoundError as error:
        raise UserError(
            f"logger: {error}; pip install 'selfsup[tensorboard,wandb]' brings what the loggers need."
        ) from error
    return loggers


class MetricsCsv(CSVLogger):
    """Lightning's CSV logger for a run that may be resumed: rows up to the resumed step stay, later ones go."""

    def __init__(self, run_dir: Path, resumed_step: int = 0) -> None:
        super().__init__(save_dir=run_dir, name="", version="", flush_logs_every_n_steps=1)
        self._resumed_step = resumed_step

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None:
            self._experiment = _KeepingWriter(self.log_dir, self._resumed_step)
        return self._experiment


class _KeepingWriter(ExperimentWriter):
    def __init__(self, log_dir: str, resumed_step: int) -> None:
        self._resumed_step = resumed_step
        super().__init__(log_dir)

    def _check_log_dir_exists(self) -> None:
        path = Path(self.metrics_file_path)
        if path.exists():
            self.metrics_keys = keep_rows(path, self._resumed_step)

    def save(self) -> None:
        """Append the rows that were logged since the last time."""
        try:
            super().save()
        except BaseException as error:
            # a signal may end a run while the file gets further columns; what is saved on the way out has those it has
            if os.path.isfile(self.metrics_file_path):
                self.metrics_keys = read_metrics(self.metrics_file_path).columns
            if not isinstance(error, OSError):
                raise
            raise UserError(f"{self.metrics_file_path} could not be written: {error.strerror or error}.") from error

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        # Lightning's own empties the file first: killed then, a run would lose all its rows
        _write(Path(self.metrics_file_path), read_metrics(self.metrics_file_path).rows, fieldnames)


def keep_rows(path: Path, before: int) -> list[str]:
    """Leave the rows of steps below ``before`` in a ``metrics.csv``, tidied; return its columns.

    Raises:
        UserError: As :func:`~selfsup.report.metrics.read_metrics`.
    """
    metrics = read_metrics(path)
    for note in metrics.notes:
        warnings.warn(note, stacklevel=2)
    columns = sorted(metrics.columns)
    if columns:
        _write(path, [row for row in metrics.rows if int(row["step"]) < before], columns)
    else:
        path.unlink()  # the first row brings a header again
    return columns


def _write(path: Path, rows: list[dict[str, str]], columns: list[str]) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=columns)
    writer.writeheader()
    writer.writerows(rows)
    replace_text(path, text.getvalue())
