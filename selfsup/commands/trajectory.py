"""Say which checkpoint of a run RankMe, LiDAR and α-ReQ would choose without labels, beside the best by kNN.

  selfsup trajectory RUN [key=value …]

RUN is a run folder with several checkpoints: train with trainer.keep_every_epochs=N. The records of every checkpoint go
to the run's results.json, and the curves to figures/trajectory.png.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from selfsup.commands import EVALUATION, Parser
from selfsup.errors import UserError
from selfsup.settings.early import refuse_mistakes
from selfsup.tables import console_table
from selfsup.wording import word

NAMES = {"top1": "kNN", "rank_me": "RankMe", "lidar": "LiDAR", "alpha_req": "α-ReQ"}


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.groups = EVALUATION


def run(arguments: Namespace) -> int:
    """Do the work and return the exit code."""
    if len(arguments.words) != 1:
        raise UserError("trajectory: name one run folder, selfsup trajectory RUN.")
    if not arguments.own_files:
        refuse_mistakes(arguments.settings, "evaluate")
    folder = Path(arguments.words[0]).expanduser()
    files = kept_checkpoints(folder)
    from selfsup.eval.choosing import Choice, choices

    values = trajectory(files, arguments.settings)
    metrics = [metric for metric in NAMES if any(metric in own for own in values.values())]
    rows = [[str(epoch), *(written(metric, own.get(metric)) for metric in metrics)] for epoch, own in values.items()]
    print(f"\n{console_table(['epoch', *(NAMES[metric] for metric in metrics)], rows)}\n")

    def line(choice: Choice) -> list[str]:
        agreement = "–" if choice.agreement is None else f"{choice.agreement:.2f}"
        lost = "–" if choice.lost is None else f"{100 * choice.lost:.2f}"
        return [NAMES[choice.metric], str(choice.epoch), written("top1", choice.accuracy), lost, agreement]

    heads = ["chosen by", "epoch", "kNN there", "points lost", "rank correlation with kNN"]
    print(console_table(heads, [line(choice) for choice in choices(values)]))
    print(f"\nsaved: {word(folder)}/results.json, figures/trajectory.png")
    return 0


def written(metric: str, value: float | None) -> str:
    """Write a value of the table."""
    if value is None:
        return "–"
    return f"{100 * value:.2f} %" if metric == "top1" else f"{value:.4g}"


def kept_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a run that are kept for good, by epoch, and the last one.

    Raises:
        UserError: It is no run, or there are fewer than two.
    """
    kept = sorted((folder / "checkpoints").glob("epoch-*.ckpt"))
    last = folder / "checkpoints" / "last.ckpt"
    found = kept + ([last] if last.is_file() else [])
    if not found:
        raise UserError(f"{folder} holds no checkpoints; name a run folder.")
    if len(found) < 2:
        raise UserError(
            f"{folder} has kept one checkpoint, and there is nothing to choose; train with trainer.keep_every_epochs=1."
        )
    return found


def trajectory(
    files: Sequence[Path], overrides: Sequence[str] = (), *, progress: bool = True
) -> dict[int, dict[str, float]]:
    """Run the protocol ``trajectory`` on checkpoints of one run, draw it, and return its values by epoch and metric.

    Two checkpoints of one epoch, such as the last one and its kept copy, are measured once.

    Args:
        files: The checkpoints.
        overrides: Settings of the evaluation.
        progress: Show progress bars.

    Raises:
        UserError: As ``selfsup.evaluate``, or all checkpoints are of one epoch.
    """
    from selfsup.engine.evaluation import evaluate_opened, open_evaluation, results_folder
    from selfsup.eval.choosing import by_epoch
    from selfsup.eval.record import Record
    from selfsup.report import Evaluated, draw_figures

    records: dict[int | None, list[Record]] = {}
    folder = None
    for file in files:
        own = [*overrides, "eval.figures=false", "eval.cache=false"]
        config, opened = open_evaluation([f"checkpoint={file}", *own])
        folder = results_folder(config, opened)
        if opened.epochs not in records:
            records[opened.epochs] = evaluate_opened(config, opened, ["trajectory"], progress=progress)
    everything = [record for found in records.values() for record in found]
    values = by_epoch(everything)
    if len(values) < 2:
        raise UserError("trajectory: all checkpoints are of one epoch; train with trainer.keep_every_epochs=1.")
    if folder is not None:
        draw_figures(Evaluated(everything, {}), folder / "figures")
    return values
