"""What the doctor found, and the page that says it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from selfsup.engine.environment import environment
from selfsup.tables import markdown_table
from selfsup.wording import counted
from selfsup.writing import replace_text

LEAST = 0.02  # share of a step that is worth a setting


@dataclass(frozen=True)
class Phase:
    """Seconds a step spends in a phase: the mean, which adds up over phases, and the middle half of the steps."""

    name: str
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Extra:
    """Work between steps.

    Attributes:
        name: What it is.
        seconds: How long it takes once.
        every_steps: How often it comes.
        setting: The setting that makes it rarer.
    """

    name: str
    seconds: float
    every_steps: float
    setting: str

    @property
    def per_step(self) -> float:
        """Seconds, spread over the steps."""
        return self.seconds / self.every_steps


@dataclass(frozen=True)
class Trial:
    """What a setting did, measured in turns with the present settings.

    Attributes:
        setting: As it is written on the command line.
        images_per_second: Median of the rounds.
        gain: More images a second, as a fraction: the median over the rounds of the ratio within a round, less 1.
        low, high: The smallest and the largest such ratio, less 1.
        memory_mb: Peak memory, as ``Report.trial_memory_mb``.
        setup_seconds: What the first steps took beyond those of the present settings (compilation).
        recommended: Whether the gain was beyond the noise, and positive in every round.
        note: What else changes.
    """

    setting: str
    images_per_second: float
    gain: float
    low: float
    high: float
    memory_mb: float
    setup_seconds: float
    recommended: bool
    note: str


@dataclass(frozen=True)
class Report:
    """What the doctor found. ``str`` gives a page, ``dataclasses.asdict`` everything.

    Attributes:
        title: Method, data, network, batch, device.
        images: Images a step.
        phases: In the order of a step; their means add up to ``step_seconds``.
        steps: Steps that were timed by phases.
        step_seconds: Mean of these steps.
        step_median, step_low, step_high: Median and middle half of them.
        extras: Evaluation, checkpoints and the start of an epoch.
        memory_mb: Peak memory of these steps in MB (10⁶ bytes): of the tensors on a CUDA device, else of the process.
        plain_seconds: A step without the clock; median over the rounds.
        limit_seconds: The same, of forward, loss, backward and optimiser on precomputed views.
        limit_share, limit_low, limit_high: ``limit_seconds`` over ``plain_seconds`` round by round: median and range.
        trial_memory_mb: Peak memory of the rounds with the present settings.
        noise: Largest difference between two equal runs of a round, as a fraction.
        trials: Settings that were tried, the best first.
        skipped: Settings that were not, and why.
        rounds, steps_a_round: How each was tried.
        notes: What else to know.
    """

    title: str
    images: int
    phases: list[Phase]
    steps: int
    step_seconds: float
    step_median: float
    step_low: float
    step_high: float
    extras: list[Extra]
    memory_mb: float
    plain_seconds: float
    limit_seconds: float
    limit_share: float
    limit_low: float
    limit_high: float
    trial_memory_mb: float
    noise: float
    trials: list[Trial]
    skipped: list[tuple[str, str]]
    rounds: int
    steps_a_round: int
    notes: list[str]

    def __str__(self) -> str:
        return "\n".join(_page(self))

    def save(self, path: str | Path) -> None:
        """Write all numbers, and what they were measured on, as JSON."""
        values = {**dataclasses.asdict(self), "environment": environment()}
        replace_text(path, json.dumps(values, indent=2) + "\n")


def _page(report: Report) -> Iterator[str]:
    """The report, on one screen."""
    step = report.step_seconds
    yield report.title
    yield (
        f"\nWhere a step goes: {counted(report.steps, 'step')} of {_ms(step)} ms on average "
        f"(median {_ms(report.step_median)}, middle half {_ms(report.step_low)} to {_ms(report.step_high)})\n"
    )
    rows = [
        [phase.name, _ms(phase.mean), _percent(phase.mean / step), f"{_ms(phase.low)} to {_ms(phase.high)}"]
        for phase in [*report.phases, Phase("sum", step, report.step_low, report.step_high)]
    ]
    for extra in report.extras:
        how = f"{extra.seconds:.3g} s every {extra.every_steps:,.0f} steps"
        rows.append([f"+ {extra.name}", _ms(extra.per_step), _percent(extra.per_step / step), how])
    yield markdown_table(["phase", "ms a step", "share", "middle half, ms"], rows)
    yield (
        f"Limit: forward, loss, backward and optimiser alone, on views that are there already, take "
        f"{_ms(report.limit_seconds)} ms.\nA step without the clock takes {_ms(report.plain_seconds)} ms, "
        f"{report.images / report.plain_seconds:.4g} images/s: {_percent(report.limit_share)} of the limit is reached "
        f"({_percent(report.limit_low)} to {_percent(report.limit_high)})."
        f"\nPeak memory: {report.memory_mb:,.0f} MB."
    )
    yield (
        f"\nSettings tried in turns with the present ones, {counted(report.rounds, 'round')} of "
        f"{counted(report.steps_a_round, 'step')}. Two equal runs of a round differed by up to "
        f"{_percent(report.noise)}.\n"
    )
    images = report.images / report.plain_seconds
    rows = [["as it is", f"{images:.4g}", "", "", f"{report.trial_memory_mb:,.0f}", ""]]
    for trial in report.trials:
        spread = f"{100 * trial.low:+.0f} to {100 * trial.high:+.0f} %"
        cells = [trial.setting, f"{trial.images_per_second:.4g}", f"{100 * trial.gain:+.1f} %", spread]
        rows.append([*cells, f"{trial.memory_mb:,.0f}", _verdict(trial, report)])
    yield markdown_table(["setting", "images/s", "gain", "range", "peak MB", "verdict"], rows).rstrip()
    for extra in report.extras:
        if extra.per_step / step >= LEAST:
            yield f"{extra.setting}: {extra.name} adds {_percent(extra.per_step / step)} to the time of the steps."
    if report.skipped:
        yield "\nNot tried: " + "; ".join(f"{name} ({why})" for name, why in report.skipped) + "."
    if report.notes:
        yield "\n" + "\n".join(report.notes)


def _verdict(trial: Trial, report: Report) -> str:
    if trial.recommended:
        word = "faster"
    elif trial.high < 0 and -trial.gain > report.noise:
        word = "slower"
    else:
        word = "no clear difference"
    saved = 1 - trial.memory_mb / report.trial_memory_mb if report.trial_memory_mb else 0.0
    words = [word, *([f"{_percent(saved)} less memory"] if saved > 0.1 else []), *([trial.note] if trial.note else [])]
    if trial.setup_seconds > 10 * report.plain_seconds and trial.setup_seconds > 5:
        words.append(f"starts {trial.setup_seconds:.0f} s later")
    return "; ".join(words)


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f}" if seconds < 1 else f"{1000 * seconds:.0f}"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %" if abs(fraction) < 0.0995 else f"{100 * fraction:.0f} %"
