"""What Hydra composes of the chosen groups; for a help text from excerpts of the dataclasses alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, cast

from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from selfsup.errors import UserError
from selfsup.registry import REGISTRIES, with_defaults
from selfsup.settings.catalog import is_choice, listed, name_choice
from selfsup.settings.excerpts import configuration, excerpt
from selfsup.settings.overrides import Schema, read_change

#: Groups whose choices are YAML files alone, and where the dataclass of their settings is.
_BASES = {
    "backbone": ("selfsup.nn.backbone", "BackboneConfig"),
    "augment": ("selfsup.augment.config", "AugmentConfig"),
    "optimizer": ("selfsup.optimization", "OptimizerConfig"),
}


def compose_choices(words: Sequence[str], kind: str) -> dict[str, Any]:
    """Let Hydra compose the defaults of the chosen groups; see :func:`selfsup.settings.catalog.is_choice`.

    Raises:
        UserError: There is no such choice.
    """
    own_files = any(word.startswith("hydra.searchpath=") for word in words)
    named = [word if word.startswith("hydra") else name_choice(word, refuse=not own_files) for word in words]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_module("selfsup.configs", version_base="1.3"):
            composed = compose(kind, overrides=named)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error)) from error
    return cast(dict[str, Any], OmegaConf.to_container(composed))


def explain(error: Exception) -> str:
    """Say in one sentence what Hydra or OmegaConf found wrong."""
    text = " ".join(str(error).split())
    if found := re.search(r"hydra/(launcher|sweeper)/(\w+)", text):
        return (
            f"There is no hydra/{found.group(1)}={found.group(2)}: a package of its own brings it "
            "(submitit_slurm and submitit_local: pip install hydra-submitit-launcher)."
        )
    sets = re.search(r"In '(\w+)/([\w/]+)'.*full_key: ((\w+)\.\w+)", text)
    if sets and "ConfigKeyError" in text:
        group, choice, key, section = sets.groups()
        return (
            f"{group}={choice} sets {key}, which the chosen {section} does not have; leave {section}= as "
            f"{group}={choice} has it, or choose one that has this setting (selfsup {section} NAME lists its settings)."
        )
    return text


def config_for_help(words: Sequence[str], kind: str) -> Any:
    """Return the configuration that settings give, made of excerpts: the code that they are settings of takes seconds.

    Where ``selfsup.config`` is imported, its ``load_config`` does this; Hydra knows one dataclass a name.

    Args:
        words: As ``load_config`` takes them.
        kind: As of ``load_config``.

    Raises:
        UserError: As ``load_config``.
    """
    store = ConfigStore.instance()
    root = configuration(kind)
    store.store(name=f"{kind}_schema", node=root)
    for group, place in _BASES.items():
        store.store(group=group, name="base", node=excerpt(*place))
    for group in REGISTRIES:
        for name, entry in listed(group).items():
            node = with_defaults(excerpt(entry.module, entry.settings), entry.choices)
            store.store(group=group, name=name, node=node)
    groups = [word for word in words if is_choice(word, kind)]
    values = compose_choices(groups, kind)
    sections = {
        group: excerpt(entry.module, entry.settings)
        for group in REGISTRIES
        if group in values and (entry := listed(group)[values[group]["name"]])
    }
    sections["eval"] = type(excerpt("selfsup.eval.config", "eval_config")())
    return Schema(root, sections).build(values, [read_change(word) for word in words if word not in groups])
