"""What a run says of the teacher that it learns from, and what it looks at when it goes on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from selfsup.errors import UserError


def teacher_lines(teacher: Mapping[str, Any] | None) -> list[str]:
    """Return what a run that begins says of its teacher, by what its checkpoints keep of it."""
    if teacher is None:
        return []
    own = "its own" if teacher["normalized"] else "the data's, as it states none"
    return [
        f"learns from {teacher['name']}: {teacher['weights'] / 1e6:.2f} M weights (SHA-256 {teacher['digest'][:12]}), "
        f"frozen, normalisation {own}; checkpoints do not hold it, so keep it for as long as this run is to go on"
    ]


def check_teacher(before: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> None:
    """Make sure that a run goes on with the teacher that it has had.

    Args:
        before: What its checkpoint keeps of it.
        now: The same of the one that was opened.

    Raises:
        UserError: The weights are others.
    """
    if before is not None and now is not None and before["digest"] != now["digest"]:
        raise UserError(
            f"resume: method.teacher={now['name']} is not the teacher that this run has learnt from (SHA-256 "
            f"{now['digest'][:12]}, it was {before['digest'][:12]}, of {before['name']}); give that one with "
            "method.teacher=, wherever it lies now, or start another run."
        )
