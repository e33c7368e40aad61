"""The one exception for what a person can put right, and how errors of other libraries become its sentences."""

from __future__ import annotations

import importlib
import json
from typing import Any


class UserError(Exception):
    """A mistake in what was asked for: a setting, a file, a folder.

    The message is one sentence that names the setting and the way out. The command line prints it without a
    traceback and exits with code 2.
    """


def reason_of(error: BaseException) -> str:
    """Return the first line of what an error says, without its full stop, or its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def from_json(text: str | bytes) -> Any:
    """Return what JSON holds.

    Raises:
        ValueError: It is none, or its lists and objects lie more than some hundred levels deep.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it has too many levels") from error


def packages(what: str, extra: str, *names: str) -> list[Any]:
    """Import packages that an extra of selfsup installs.

    Args:
        what: What needs them, for the message.
        extra: The extra of ``setup.cfg``.
        names: Their modules.

    Raises:
        UserError: One is missing.
    """
    try:
        return [importlib.import_module(name) for name in names]
    except ImportError as error:
        raise UserError(
            f"{what} needs the package {error.name}; install the extra: pip install 'selfsup[{extra}]'."
        ) from error
