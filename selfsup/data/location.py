"""Where data lies on disk, and what to say when it does not."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from selfsup.data.base import DataConfig
from selfsup.errors import UserError


def data_root(config: DataConfig) -> Path:
    """Return ``data.root``; without one the folder that ``SELFSUP_DATA`` names, then ``~/.cache/selfsup/data``."""
    return one_root(config) or Path(os.environ.get("SELFSUP_DATA") or "~/.cache/selfsup/data").expanduser()


def roots(config: DataConfig) -> list[Path]:
    """Return the folders that ``data.root`` names: none, one or several."""
    given = config.root if isinstance(config.root, (list, tuple)) else [config.root] if config.root else []
    return [Path(str(folder)).expanduser() for folder in given]


def one_root(config: DataConfig) -> Path | None:
    """Return the folder that ``data.root`` names, or None.

    Raises:
        UserError: It names several.
    """
    given = roots(config)
    if len(given) > 1:
        raise UserError(f"data.root names {len(given)} folders, and data={config.name} reads one; name one.")
    return given[0] if given else None


def missing(config: DataConfig) -> UserError:
    """Return the error for a source that was not found."""
    return UserError(
        f"{config.name} was not found in {data_root(config)}; "
        "set data.root to the folder that holds it, or data.download=true to fetch it."
    )


def from_torchvision(config: DataConfig, build: Callable[..., Any], **arguments: Any) -> Any:
    """Build a torchvision dataset in ``data_root``, downloading only when ``data.download`` is set.

    Raises:
        UserError: The files are missing or damaged, or the download failed.
    """
    try:
        return build(str(data_root(config)), download=config.download, **arguments)
    except (OSError, RuntimeError) as error:  # torchvision raises RuntimeError for missing files and wrong checksums
        if not config.download:
            raise missing(config) from error
        raise UserError(
            f"data.download: {config.name} could not be fetched ({error}); set data.root to a folder that holds it."
        ) from error
