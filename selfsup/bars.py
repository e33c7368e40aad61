"""Bars for what takes more than a few seconds."""

from __future__ import annotations

import os
import sys
from typing import Any

from tqdm import tqdm


def progress_bar(*arguments: Any, **settings: Any) -> Any:
    """Return a bar of tqdm, with tqdm's arguments.

    Where what is written stays, it writes seldom: each second in a notebook, each ten seconds in a file.
    """
    if "TQDM_MININTERVAL" not in os.environ and not sys.stderr.isatty():
        settings.setdefault("mininterval", 1.0 if "ipykernel" in sys.modules else 10.0)
    return tqdm(*arguments, **settings)
