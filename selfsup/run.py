"""From Python: train, evaluate, and a run folder as tables, a network and figures."""

from __future__ import annotations

import base64
import html
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfsup.errors import UserError, from_json

if TYPE_CHECKING:
    import pandas as pd
    import pytorch_lightning as pl
    from torch import nn

    from selfsup.config import EvaluateConfig, TrainConfig
    from selfsup.eval import Record
    from selfsup.nn import Backbone
    from selfsup.report import Comparison

MEASURES = ("online/knn", "health/rank", "train/loss")  # of the last row of the metrics, shown first


class Run(os.PathLike[str]):
    """A folder that ``selfsup train`` wrote; itself a path, wherever a path is taken.

    Args:
        path: The folder.

    Raises:
        UserError: It is no run folder.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).expanduser()
        if not (self.path / "config.yaml").is_file():
            raise UserError(f"{self.path} is not a run folder: it holds no config.yaml.")

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"Run('{self.path}')"

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Run) and self.path.resolve() == other.path.resolve()

    def __hash__(self) -> int:
        return hash(self.path.resolve())

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.path.name

    @cached_property
    def config(self) -> TrainConfig:
        """The settings it was trained with."""
        from selfsup.config import load_config

        config: TrainConfig = load_config(file=self.path / "config.yaml")
        return config

    @property
    def environment(self) -> dict[str, Any]:
        """Machine, versions, command and data, as ``environment.json`` has them; empty where there is none."""
        return dict(self._json("environment.json"))

    @property
    def metrics(self) -> pd.DataFrame:
        """``metrics.csv``: a row for every ``step`` that was logged, a column for each metric."""
        import pandas as pd

        path = self.path / "metrics.csv"
        return pd.read_csv(path) if path.is_file() else pd.DataFrame({"step": pd.Series(dtype="int64")})

    @property
    def results(self) -> pd.DataFrame:
        """``results.json``: a row for every number that was measured, its protocol in the columns beside it."""
        import pandas as pd

        return pd.DataFrame(self._json("results.json").get("results", []))

    @property
    def checkpoint(self) -> Path:
        """The file of its last weights.

        Raises:
            UserError: There is none.
        """
        from selfsup.checkpoint import find_checkpoint

        return find_checkpoint(self.path)

    @property
    def figures(self) -> dict[str, Path]:
        """Its pictures by name."""
        return {path.stem: path for path in sorted((self.path / "figures").glob("*.png"))}

    def backbone(self, network: nn.Module | None = None) -> Backbone:
        """Return the trained network: images ``[B,C,H,W]`` to features ``[B,D]``, in evaluation mode on the CPU.

        Args:
            network: Of a run that trained a module of your own: a module like that one, whose weights do not matter.
        """
        from selfsup.opened import load_backbone

        if network is not None:
            _give_network(network, self.config.data.image_size)
        return load_backbone(self.path)

    def evaluate(self, protocols: Sequence[str] | str | None = None, **settings: Any) -> pd.DataFrame:
        """Evaluate it, add the records to its ``results.json``, and return those of this evaluation as a table.

        Args:
            protocols, settings: As of :func:`evaluate`.
        """
        import pandas as pd

        return pd.DataFrame([record.flat() for record in evaluate(self, protocols, **settings)])

    def _json(self, name: str) -> dict[str, Any]:
        path = self.path / name
        if not path.is_file():
            return {}
        try:
            values = from_json(path.read_text("utf-8"))
        except ValueError as error:
            raise UserError(f"'{path}' is broken; delete it and evaluate the run again.") from error
        return values if isinstance(values, dict) else {}

    def summary(self) -> dict[str, Any]:
        """Return what a list of runs shows of it: method, data, epochs and its last measures."""
        config = self.config
        found = {
            "run": str(self.path),
            "method": config.scheme,
            "data": config.data.name,
            "backbone": config.backbone.name,
            "epochs": config.trainer.max_epochs,
            "seed": config.seed,
        }
        metrics = self.metrics
        for measure in MEASURES:
            if measure in metrics and metrics[measure].notna().any():
                found[measure] = float(metrics[measure].dropna().iloc[-1])
        results = self.results
        for row in results.to_dict("records") if "metric" in results else []:
            if row["metric"] in ("top1", "miou") and row["split"] == "test":
                found.setdefault(f"{row['protocol']} {row['metric']}", row["value"])
        return found

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the summary, and the pictures of the training."""
        rows = "".join(
            f"<tr><th style='text-align:left'>{html.escape(key)}</th><td>{html.escape(_short(value))}</td></tr>"
            for key, value in self.summary().items()
        )
        pictures = "".join(_picture(path) for name, path in self.figures.items() if name in ("training", "views"))
        return f"<table>{rows}</table>{pictures}"


class Runs(Sequence[Run]):
    """Several runs; a notebook shows them as a table."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self._runs = list(runs)

    def __getitem__(self, position: Any) -> Any:
        found = self._runs[position]
        return Runs(found) if isinstance(found, list) else found

    def __len__(self) -> int:
        return len(self._runs)

    def __iter__(self) -> Iterator[Run]:
        return iter(self._runs)

    def __repr__(self) -> str:
        return self.table.to_string() if self._runs else "no runs"

    @property
    def table(self) -> pd.DataFrame:
        """A row for each run: its method, data, epochs and last measures."""
        import pandas as pd

        return pd.DataFrame([run.summary() for run in self._runs])

    def _repr_html_(self) -> str:
        return str(self.table.to_html()) if self._runs else "no runs"


def runs(folder: str | os.PathLike[str] = "runs", **wanted: Any) -> Runs:
    """Return the runs below a folder, the oldest first.

    Args:
        folder: Is searched with all that lies below it.
        wanted: Keep the runs whose summary has these values: ``method="moco"``, ``data="cifar10"``, ``seed=0``.

    Raises:
        UserError: There is no such folder, or a summary has no such value.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"There is no folder {root}; give the one that holds the runs.")
    paths = sorted((path.stat().st_mtime, path.parent) for path in root.rglob("config.yaml"))
    found = [Run(path) for _, path in paths if not any(part.startswith(".") for part in path.relative_to(root).parts)]
    kept, unread = [], []
    for run in found:
        try:
            summary = run.summary()
        except UserError as error:
            unread.append(f"{run} ({error})")
            continue
        if unknown := wanted.keys() - summary.keys() - set(MEASURES):
            raise UserError(f"runs: there is no {sorted(unknown)[0]} to choose by; there are {', '.join(summary)}.")
        if all(summary.get(key) == value for key, value in wanted.items()):
            kept.append(run)
    if unread:
        warnings.warn(f"{len(unread)} folders cannot be read as runs: {'; '.join(unread[:3])}", stacklevel=2)
    return Runs(kept)


def train(config: TrainConfig | Sequence[str] = (), callbacks: Sequence[pl.Callback] = (), **settings: Any) -> Run:
    """Train a method and return its run.

    >>> run = selfsup.train(method="moco", data="cifar10", trainer={"max_epochs": 20})
    >>> run = selfsup.train(method="simclr", backbone=my_module, data=my_dataset, batch_size=64)

    Args:
        config: A configuration, or overrides as on the command line: ``["method=moco", "trainer.max_epochs=20"]``.
        callbacks: Further ones of Lightning's, see :func:`selfsup.engine.training.train`.
        settings: Settings by name; a section's as a dictionary, in which ``name`` is the method or the data. ``data``
            may be any torch dataset of images or of (image, label), see :func:`selfsup.data.as_images`; a pair of such,
            for training and for testing; or ``{"dataset": …, "test": …, "image_size": 64}``. ``backbone`` may be any
            module that maps float ``[B,C,H,W]`` to ``[B,D]``, of which a copy is trained. Such a run goes on, and is
            evaluated, where dataset and module are given again.

    Raises:
        UserError: A setting, a file or a folder is not as it must be.
        Interrupted: Ctrl-C or SIGTERM; the run has left a checkpoint, if it had begun to train.
    """
    from selfsup.config import TrainConfig, load_config
    from selfsup.engine import training
    from selfsup.settings.overrides import words_of

    if isinstance(config, TrainConfig):
        if settings:
            raise UserError(
                f"{sorted(settings)[0]}: a finished configuration takes no further settings; change it itself."
            )
        return Run(training.train(config, callbacks))
    words = [*([config] if isinstance(config, str) else config), *_given(settings), *words_of(settings)]
    resumes = [word for word in words if word.startswith("resume=") and word not in ("resume=null", "resume=auto")]
    if not resumes:
        return Run(training.train(load_config(words), callbacks))
    words = [word for word in words if word != "data=own"]  # a run that goes on has chosen its data
    return Run(training.train(training.load_resumed_config(words), callbacks))


def evaluate(
    what: EvaluateConfig | Sequence[str] | str | os.PathLike[str] | nn.Module,
    protocols: Sequence[str] | str | None = None,
    progress: bool = True,
    **settings: Any,
) -> list[Record]:
    """Return the records of a network, then of the weights it was trained on from (``at="start"``), and keep them.

    >>> selfsup.evaluate(run, ["knn"])
    >>> selfsup.evaluate(my_module, ["knn", "linear_probe"], data="cifar10")

    Args:
        what: A run, whatever ``checkpoint=`` takes, or any module that maps float ``[B,C,H,W]`` to ``[B,D]``; or
            overrides, or a configuration.
        protocols: Some of ``selfsup.eval.PROTOCOLS``; None is kNN, the linear probe and diagnostics, ``"all"`` all that
            the data allows but those that take longest.
        progress: Show progress bars.
        settings: Settings by name, as of :func:`train`.

    Raises:
        UserError: A checkpoint, data or setting that is not as it must be.
    """
    from torch import nn

    from selfsup.config import EvaluateConfig
    from selfsup.engine import evaluation
    from selfsup.settings.overrides import words_of

    if isinstance(what, EvaluateConfig):
        if settings:
            raise UserError(
                f"{sorted(settings)[0]}: a finished configuration takes no further settings; change it itself."
            )
        return evaluation.evaluate(what, protocols, progress)
    own = _given(settings)
    if isinstance(what, nn.Module):
        _give_network(what, _image_size(own, settings))
        words = ["checkpoint=own"]
    elif isinstance(what, str | os.PathLike):
        words = [f"checkpoint={os.fspath(what)}"]
    else:
        words = list(what)
    return evaluation.evaluate([*words, *own, *words_of(settings)], protocols, progress)


def compare(runs: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str] | None = None) -> Comparison:
    """Put runs side by side; a notebook shows a table and a chart, with the deviation over the seeds.

    >>> selfsup.compare(selfsup.runs("runs"))
    >>> selfsup.compare(["runs/a", "runs/b"], "comparison").table

    Args:
        runs: Folders of runs and of evaluations.
        out: Folder for the files that ``selfsup compare`` writes, or None.

    Raises:
        UserError: No run is given, a folder is no run, or a file in it is broken.
    """
    from selfsup.report import Comparison
    from selfsup.report import compare as write

    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder if out is None else out)
        found = write([os.fspath(run) for run in runs], output)
        chart = output / "comparison.png"
        return Comparison(found, chart.read_bytes() if chart.is_file() else b"")


def _given(settings: dict[str, Any]) -> list[str]:
    """Take datasets and modules out of the settings, hand them over, and return the overrides that name them."""
    from torch import nn

    words = []
    data = settings.get("data")
    if isinstance(data, Mapping) and "dataset" in data:
        own = {key: value for key, value in data.items() if key not in ("dataset", "test")}
        words += _give_data(data["dataset"], data.get("test"), own)
        settings["data"] = own
    elif data is not None and not isinstance(data, str | Mapping):
        train, test = data if isinstance(data, tuple) else (data, None)
        words += _give_data(train, test, {})
        del settings["data"]
    backbone = settings.get("backbone")
    if isinstance(backbone, nn.Module):
        _give_network(backbone, _image_size(words, settings))
        words.append("backbone.name=own")
        del settings["backbone"]
    return words


def _give_data(train: Any, test: Any, settings: Mapping[str, Any]) -> list[str]:
    """Hand datasets over and return the overrides that name them; ``settings`` are those of the data."""
    from selfsup.data.sources.own import give_dataset
    from selfsup.data.torch_dataset import as_images
    from selfsup.types import height_width

    size, limit = settings.get("image_size"), settings.get("resident_limit_mb", 2048)
    images = as_images(train, image_size=size, name="own", resident_limit_mb=limit)
    give_dataset(images, test)
    statistics = [f"data.{name}={list(getattr(images.normalization, name))}" for name in ("mean", "std")]
    return ["data=own", f"data.image_size={list(height_width(images.image_size))}", *statistics]


def _image_size(words: Sequence[str], settings: Mapping[str, Any]) -> Any:
    """Return the size of the images that a network will see, as far as the settings say; else 224."""
    from selfsup.settings import Sides
    from selfsup.settings.values import from_text

    data = settings.get("data")
    given = [data.get("image_size", 224) if isinstance(data, Mapping) else 224]
    given += [word.partition("=")[2] for word in words if word.startswith("data.image_size=")]
    return from_text(str(given[-1]).replace("(", "[").replace(")", "]"), Sides, "data.image_size")


def _give_network(network: nn.Module, image_size: Any) -> None:
    from selfsup.nn import give_backbone, wrap_backbone

    give_backbone(wrap_backbone(network, image_size))


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _picture(path: Path) -> str:
    content = base64.b64encode(path.read_bytes()).decode()
    return f"<img alt='{html.escape(path.stem)}' style='max-width:100%' src='data:image/png;base64,{content}'>"
