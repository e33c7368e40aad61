"""How messages write what they say again and again: counts, and commands that work as they are printed."""

from __future__ import annotations

import os
import shlex


def counted(number: int, one: str, more: str | None = None) -> str:
    """Return a count with its noun, ``1 epoch`` and ``1,200 epochs``; ``more`` is the plural where an s does not do."""
    return f"{number:,} {one if number == 1 else more or f'{one}s'}"


def command(*words: str | os.PathLike[str]) -> str:
    """Return a command of ``selfsup`` as it can be pasted into a shell, each of its words quoted where it has to be."""
    return shlex.join(["selfsup", *(os.fspath(word) for word in words)])


def word(path: str | os.PathLike[str]) -> str:
    """Return a path as a word that no command takes for a setting or an option: ``lr=0.1/run`` is ``./lr=0.1/run``."""
    name = os.fspath(path)
    return f"./{name}" if "=" in name.partition("/")[0] or name.startswith("-") else name
