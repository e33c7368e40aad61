"""What may change when a run goes on."""

from __future__ import annotations

import contextlib
import dataclasses
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from torch import Tensor

from selfsup.checkpoint import INFO
from selfsup.config import TrainConfig, from_values
from selfsup.errors import UserError, reason_of
from selfsup.shortage import lacks_memory


class Rule(Enum):
    """What a resumed run does with a setting that differs."""

    STAYS = "the run goes on as it began"
    LEARNS = "it may change, and the run learns something else from there on"
    RUNS = "it may change, and the run learns the same, up to rounding"


#: The rule of each setting, or of all those under a name; the longest name counts.
RULES = {
    "": Rule.STAYS,
    "method": Rule.LEARNS,  # where the weights still fit, which `check_fit` looks at
    "method.name": Rule.STAYS,
    **dict.fromkeys(("method.teacher", "method.teacher_backbone"), Rule.RUNS),  # its weights are compared
    "objective": Rule.LEARNS,
    "objective.name": Rule.STAYS,
    "negatives": Rule.LEARNS,
    "negatives.name": Rule.STAYS,
    "augment": Rule.LEARNS,
    "optimizer": Rule.LEARNS,
    "optimizer.name": Rule.STAYS,
    **dict.fromkeys(  # parameters would change groups
        ("optimizer.exclude_1d", "optimizer.no_decay", "optimizer.layer_decay", "optimizer.patch_embed_lr"), Rule.STAYS
    ),
    "data.root": Rule.RUNS,
    "data.download": Rule.RUNS,
    "data.workers": Rule.RUNS,
    "data.cache": Rule.RUNS,
    "data.resident_limit_mb": Rule.RUNS,
    "data.resident_on_device": Rule.RUNS,
    "trainer": Rule.RUNS,
    "trainer.max_epochs": Rule.LEARNS,
    "trainer.precision": Rule.LEARNS,
    "trainer.sync_batchnorm": Rule.LEARNS,
    "trainer.batchnorm_ranks": Rule.LEARNS,
    "trainer.chunk_size": Rule.LEARNS,
    "trainer.gradient_clip": Rule.LEARNS,
    "trainer.accumulate": Rule.STAYS,  # what is done is counted in optimiser steps
    "online": Rule.RUNS,
    "logger": Rule.RUNS,
}

#: Say where a run is and how it is started, not what it is.
NOT_COMPARED = ("run_dir", "resume")


@dataclass(frozen=True)
class Change:
    """A setting that differs from what a run had; None is a key that was, or is, not there."""

    key: str
    was: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.key} was {_shown(self.was)}, now {_shown(self.now)}"

    @property
    def rule(self) -> Rule:
        """What is done with it."""
        if self.key.startswith("optimizer.kwargs.") and not all(map(_is_number, (self.was, self.now))):
            return Rule.STAYS  # a switch such as amsgrad needs a state that is not there
        if self.key == "optimizer.momentum" and not (self.was and self.now):
            return Rule.STAYS  # likewise: without momentum none has been kept
        return rule_of(self.key)


def rule_of(key: str) -> Rule:
    """Return the rule of a setting, such as ``optimizer.lr``."""
    parts = key.split(".")
    names = [".".join(parts[:count]) for count in range(len(parts), -1, -1)]
    return next(RULES[name] for name in names if name in RULES)


def changes(saved: Mapping[str, Any], config: TrainConfig) -> list[Change]:
    """Return in what a configuration differs from the one that a checkpoint holds.

    Args:
        saved: Its values; what an earlier version did not have counts as the default of this one.
        config: Of the run that goes on.

    Raises:
        UserError: The values are no configuration.
    """
    then, now = dict(_leaves(from_values(dict(saved)))), dict(_leaves(config))
    keys = [*now, *(key for key in then if key not in now)]
    return [Change(key, then.get(key), now.get(key)) for key in keys if then.get(key) != now.get(key)]


def check_changes(changed: Sequence[Change]) -> None:
    """Refuse what would make another run.

    Raises:
        UserError: It names the settings.
    """
    refused = [str(change) for change in changed if change.rule is Rule.STAYS]
    if refused:
        raise UserError(
            f"resume: {'; '.join(refused)}; this cannot change on resume, so leave it out or start another run."
        )


def check_fit(state: Mapping[str, Any], checkpoint: Mapping[str, Any], changed: Sequence[Change]) -> None:
    """Make sure that the weights of a checkpoint fit the method that was built, before anything is written.

    Raises:
        UserError: They do not; it names the settings of the method and the views that differ.
    """
    held: Mapping[str, Any] = checkpoint["state_dict"]
    apart = sorted(state.keys() ^ held.keys()) + sorted(
        key for key in state.keys() & held.keys() if _shape(state[key]) != _shape(held[key])
    )
    if apart:
        cause = [str(change) for change in changed if change.key.startswith(("method.", "objective.", "augment."))]
        because = f"{'; '.join(cause)}, with which" if cause else "the checkpoint is of another network or version:"
        which = f"{apart[0]} and {len(apart) - 1} more" if len(apart) > 1 else apart[0]
        raise UserError(
            f"resume: {because} the saved weights do not fit ({which}); leave the settings as they were, or start "
            "another run."
        )


def saved_config(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of the configuration that a checkpoint was trained with.

    Raises:
        UserError: The checkpoint lacks what a run needs to go on.
    """
    lacking = [key for key, right in _GOES_ON.items() if key not in checkpoint or not right(checkpoint[key])]
    if lacking:
        raise UserError(
            f"resume: the checkpoint lacks what a training needs to go on ({', '.join(lacking)}); give the run's "
            "last.ckpt."
        )
    values: dict[str, Any] = checkpoint[INFO]["config"]
    return values


@contextlib.contextmanager
def restoring(checkpoint: Path | None) -> Iterator[None]:
    """Train inside, from a checkpoint.

    Raises:
        UserError: The checkpoint holds something that the optimiser, its schedule, a callback or Lightning's counters
            cannot be given. None of it was trained with.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or lacks_memory(error) or not _while_restoring(error):
            raise
        raise UserError(
            f"resume: {checkpoint} does not fit the training that is to go on from it "
            f"({type(error).__name__}: {reason_of(error)}); take another checkpoint, or start another run."
        ) from error


def _while_restoring(error: BaseException) -> bool:
    """Return whether an error was raised while Lightning gave parts of a checkpoint to their owners."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return any(
        frame.f_globals.get("__name__") == "pytorch_lightning.trainer.connectors.checkpoint_connector"
        and frame.f_code.co_name.lstrip("_").startswith(("restore", "resume_start"))
        for frame in frames
    )


def _are_states(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(state, Mapping) for state in value)


#: What a training goes on from besides what its network is built from, and what each must be.
_GOES_ON: dict[str, Callable[[Any], bool]] = {
    "optimizer_states": _are_states,
    "lr_schedulers": _are_states,
    "loops": lambda value: isinstance(value, Mapping),
    "callbacks": lambda value: isinstance(value, Mapping),
    "global_step": lambda value: type(value) is int and value >= 0,
}


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if not isinstance(value, dict):
        yield prefix, value
        return
    for name, inner in value.items():
        key = f"{prefix}.{name}".strip("._")  # a setting that is called as a word of Python has a _ behind it there
        if key not in NOT_COMPARED:
            yield from _leaves(inner, key)


def _is_number(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_number, value))
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _shape(value: Any) -> tuple[bool | int, ...] | None:
    return (value.is_floating_point(), *value.shape) if isinstance(value, Tensor) else None


def _shown(value: Any) -> str:
    return "not set" if value is None else str(value)
