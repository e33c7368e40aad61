"""Hydra composes the same choices once: it takes an eighth of a second, and hundreds of tests choose the same."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from hydra.core.config_store import ConfigNode, ConfigStore

_found: dict[Any, tuple[list[ConfigNode], dict[str, Any]]] = {}


def compose_once() -> None:
    """Let ``load_config`` remember what Hydra composed of the same choices from the same schemas."""
    from selfsup import config

    compose = config.compose_choices

    def remembered(words: Sequence[str], kind: str) -> dict[str, Any]:
        if any(word.startswith("hydra") for word in words):  # may name folders, whose files change
            return compose(words, kind)
        nodes = list(_nodes(ConfigStore.instance().repo))
        key = (kind, *words, *map(id, nodes))
        if key not in _found:
            _found[key] = nodes, compose(words, kind)  # the nodes too, that no other ever has the id of one
        return copy.deepcopy(_found[key][1])

    config.compose_choices = remembered


def _nodes(repo: dict[str, Any]) -> Any:
    for item in repo.values():
        if isinstance(item, dict):
            yield from _nodes(item)
        else:
            yield item
