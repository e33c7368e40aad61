"""What a training says when it is done: what came out, where it is, and the next command."""

from __future__ import annotations

from pathlib import Path

from selfsup.config import TrainConfig
from selfsup.engine.log import FILE
from selfsup.engine.pace import in_words
from selfsup.engine.progress import Progress, in_words_each
from selfsup.wording import command, counted, word


def summary(config: TrainConfig, run_dir: Path, progress: Progress, seconds: float, memory_mb: float) -> str:
    """Return the closing lines of a run.

    Args:
        config, run_dir: Of the run.
        progress: What was seen of it.
        seconds: That it took, earlier parts included.
        memory_mb: The most memory that it held.
    """
    speed = progress.pace.images_per_second
    last = {name: value for name, value in progress.last.items() if name != "learning rate"}
    found = in_words_each(last) + ([f"{speed:,.0f} images/s"] if speed else [])
    found.append(f"{memory_mb:,.0f} MB of memory at most")
    epochs = -(-progress.pace.done // progress.pace.length.batches)
    lines = [
        f"\nTrained {counted(epochs, 'epoch')} in {in_words(seconds)}: {', '.join(found)}",
        f"run folder: {run_dir}",
    ]
    if progress.run_log.elsewhere:
        warned = counted(progress.run_log.elsewhere, "warning")
        lines.append(f"{run_dir / FILE} holds this and {warned} of other packages")
    return "\n".join([*lines, next_command(config, run_dir)])


def next_command(config: TrainConfig, run_dir: Path) -> str:
    """Return the line that says how a run is evaluated, as it can be typed."""
    if "own" in (config.data.name, config.backbone.name):  # no other process has what was given from Python
        return "next: run.evaluate(), in the process that has the dataset and the network"
    return f"next: {command('evaluate', word(run_dir))}"
