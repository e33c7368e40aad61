"""What methods have that learn from a frozen network: which one it is."""

from __future__ import annotations

from dataclasses import dataclass

from selfsup.errors import UserError
from selfsup.methods.base import MethodConfig
from selfsup.methods.parts import Parts
from selfsup.nn import Teacher


@dataclass
class TaughtConfig(MethodConfig):
    """Settings of a method that learns from a frozen network.

    Attributes:
        teacher: The network, named as for ``checkpoint``: a run, a ``.ckpt``, a file of weights, ``timm:NAME``,
            ``module:…``.
        teacher_backbone: timm's name of the network of a file of weights; other names need none.
    """

    teacher: str | None = None
    teacher_backbone: str | None = None


def teacher_of(parts: Parts) -> Teacher:
    """Return the teacher that a method was given.

    Raises:
        UserError: It has none.
    """
    if parts.teacher is None:
        raise UserError(
            "This method learns from a teacher: set method.teacher=RUN, a .ckpt, timm:NAME, module:FILE.py:NAME or a "
            "file of weights; in a loop of your own, teacher=NETWORK."
        )
    return parts.teacher
