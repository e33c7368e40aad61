"""How checkpoints are named, and what is asked of one before anything that takes seconds is imported."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from selfsup.errors import UserError
from selfsup.settings.catalog import choices

#: Words that stand in place of a path: what learned features are compared with.
BASELINES = ("raw_pixels", "untrained")
#: How the names of timm's networks, and of modules in Python files and packages, begin.
TIMM, MODULE = "timm:", "module:"
#: The network that was given from Python.
OWN = "own"


def may_be_a_run(name: str) -> bool:
    """Return whether a checkpoint string names a file or a folder, which may be a run with data of its own."""
    return name not in (*BASELINES, OWN) and not name.startswith((TIMM, MODULE))


def check_named(name: str | None, has_data: bool) -> str:
    """Return the checkpoint of an evaluation, once it is clear that there is one and on which images it is judged.

    Args:
        name: The checkpoint string, or None where none was given.
        has_data: The settings name the data.

    Raises:
        UserError: Either is missing.
    """
    if name is None:
        raise UserError(
            f"Say what to evaluate: checkpoint=RUN, a .ckpt file, timm:NAME, module:FILE.py:NAME, a file of weights "
            f"(with backbone=…), or one of {', '.join(BASELINES)} (each with data=…)."
        )
    if not has_data and not may_be_a_run(name):
        raise which_data(name)
    if may_be_a_run(name) and not Path(name).expanduser().exists():
        raise no_checkpoint(name)
    return name


def check_words(settings: Sequence[str]) -> None:
    """Check the settings of an evaluation as :func:`check_named` does.

    Raises:
        UserError: The checkpoint or the data are missing.
    """
    given = dict(setting.lstrip("+").partition("=")[::2] for setting in settings)
    check_named(given.get("checkpoint"), "data" in given)


def which_data(name: str) -> UserError:
    """Return what asks on which images a network is judged."""
    return UserError(
        f"checkpoint={name} has no data of its own; say on which images to evaluate it: data=image_folder "
        f"data.root=DIR, or data= one of {', '.join(sorted(choices('data') - {'own', 'image_folder'}))}."
    )


def no_checkpoint(path: str | Path) -> UserError:
    """Return what says that there is no such file or folder."""
    further = "" if any(sign in str(path) for sign in "/ ") else f"; a network of timm's is written timm:{path}"
    return UserError(f"There is no checkpoint {path}; give a run folder or a .ckpt file{further}.")
