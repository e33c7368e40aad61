"""A sweep's overrides: checked and written for Hydra's sweepers and launchers, and read again in each job."""

from __future__ import annotations

import dataclasses
import itertools
import keyword
import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast, get_origin

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from selfsup.config import TrainConfig, build, schema_of, start_network
from selfsup.errors import UserError
from selfsup.registry import REGISTRIES
from selfsup.run import MEASURES, runs
from selfsup.settings import TextOrList
from selfsup.settings.catalog import is_choice, name_choice
from selfsup.settings.composing import compose_choices
from selfsup.settings.meanings import misspelt
from selfsup.settings.overrides import Change, Schema, read_change
from selfsup.settings.values import from_hydra, from_text, hydra_word, parse, split, split_optional, unquote
from selfsup.tables import console_table

LONGEST_NAME = 120  # characters of a run's folder

#: How text begins from which Hydra computes the values of a sweep.
_FUNCTION = re.compile(r"(choice|range|interval|glob|shuffle|sort|tag)\(.*\)", re.DOTALL)


def sweep_words(overrides: Sequence[str]) -> list[str]:
    """Write overrides for Hydra's sweeper: commas separate the values of a sweep, and all else arrives as it stands.

    Commas inside brackets, or inside quotes around a value, separate nothing. What is written as one of Hydra's
    functions (``choice(…)``, ``range(…)``, ``interval(…)``, ``glob(…)``) is left to Hydra. Every other value is checked
    before the first job starts.

    Raises:
        UserError: As ``load_config``.
    """
    words = [word for word in overrides if word.startswith("hydra")]
    folders = [word for word in words if word.startswith("hydra.searchpath=")]
    groups = [word for word in overrides if word not in words and is_choice(word, "train")]
    computed = [word for word in groups if _FUNCTION.fullmatch(word.partition("=")[2])]
    chosen = [_alternatives(word, refuse=not folders) for word in groups if word not in computed]
    bases: list[dict[str, Any]] = []
    if computed:
        schemas = [_schema(group, name) for group, registry in REGISTRIES.items() for name in registry]
    else:
        bases = [compose_choices([*folders, *combination], "train") for combination in itertools.product(*chosen)]
        schemas = [schema_of("train", base) for base in bases]
    words += computed
    words += [f"{group[0].partition('=')[0]}={','.join(word.partition('=')[2] for word in group)}" for group in chosen]
    swept: list[list[Change]] = []
    for word in overrides:
        if is_choice(word, "train"):
            continue
        change = read_change(word)
        if change.removes:
            words.append(word)
        elif _FUNCTION.fullmatch(change.value):
            words.append(word.replace("%", "%25"))
        else:
            values, added = _values(change, schemas)
            words.append(f"{'++' * added}{change.key}={','.join(map(hydra_word, values))}")
            swept.append([dataclasses.replace(change, value=value, is_text=False) for value in values])
    for base in bases:
        for row in range(max(map(len, swept), default=1)):
            changes = [values[min(row, len(values) - 1)] for values in swept]
            build("train", start_network(base, changes, groups), changes)
    return words


def _schema(group: str, name: str) -> Schema:
    """Return the settings there are with one choice of a group; a setting is of one group alone."""
    return Schema(TrainConfig, {group: REGISTRIES[group][name].config})


def _alternatives(word: str, *, refuse: bool) -> list[str]:
    """Return ``group=a,b`` as ``group=a`` and ``group=b``, each by the name it is called by."""
    group, _, text = word.partition("=")
    return [name_choice(f"{group}={name}", refuse=refuse) for name in split(text)]


def _values(change: Change, schemas: Sequence[Schema]) -> tuple[list[Any], bool]:
    """Return the values of a setting, and whether the key may be new, which Hydra asks for."""
    found = next((place for schema in schemas if (place := schema.find(change.key)) is not None), None)
    if found is None:
        raise UserError(misspelt(change.key, change.value, schemas[0].known()))
    hint, in_dictionary = found
    kind, _ = split_optional(hint)
    parts = split(change.value)
    if kind in (str, TextOrList):
        parts = [unquote(part) for part in parts]
    if dataclasses.is_dataclass(hint):
        hint = dict[str, Any]
    values = [from_text(part, hint, change.key) for part in parts]
    renamed = keyword.iskeyword(change.key.rpartition(".")[2])  # Hydra knows it with a _ behind, see settings.key_of
    return values, change.forced or in_dictionary or get_origin(kind) is dict or renamed


def swept_keys(overrides: Sequence[str]) -> list[str]:
    """Return the keys whose values differ between the jobs of a sweep."""
    found = []
    for key, _, text in (word.partition("=") for word in overrides):
        if not key.startswith("hydra") and (_FUNCTION.fullmatch(text) or len(split(text)) > 1):
            found.append(key.lstrip("+"))
    return found


def job_folder(sweep: str | Path, keys: Sequence[str]) -> Path:
    """Return where the run of a job goes, named by what differs: ``method=moco,lr=0.1``; to be called in the job.

    Args:
        sweep: Folder of the sweep.
        keys: Of :func:`swept_keys`.
    """
    job = HydraConfig.get()
    ends = Counter(key.rpartition(".")[2] for key in keys)
    parts = []
    for word in map(parse, job.overrides.task):
        key, end = word.key_or_group, word.key_or_group.rpartition(".")[2]
        if key in keys:
            parts.append(f"{end if ends[end] == 1 else key}={from_hydra(word.value())}")
    name = re.sub(r"[^\w.=,+-]+", "-", ",".join(parts))
    if not 0 < len(name) <= LONGEST_NAME:
        name = f"{name[:LONGEST_NAME]}-{job.job.num}".lstrip("-")
    return Path(sweep) / name


def sweep_table(folder: Path) -> str:
    """Return a table of the runs of a sweep, the best by its online measure first."""
    measured = [(run.name, run.summary()) for run in runs(folder)]
    columns = [measure for measure in MEASURES if any(measure in summary for _, summary in measured)]
    if columns:
        sign = 1 if columns[0] == "train/loss" else -1  # of all others more is better
        measured.sort(key=lambda item: sign * item[1].get(columns[0], sign * math.inf))
    cells = [[f"{found[name]:.4g}" if name in found else "–" for name in columns] for _, found in measured]
    return console_table(["run", *columns], [[name, *row] for (name, _), row in zip(measured, cells, strict=True)])


def job_config(composed: DictConfig) -> TrainConfig:
    """Return the configuration of a job, from what Hydra composed for it; to be called in the job."""
    words = [word for word in HydraConfig.get().overrides.task if not is_choice(word, "train")]
    changes = [
        Change(word.key_or_group, from_hydra(word.value()), False, word.is_force_add(), word.is_delete())
        for word in map(parse, words)
    ]
    values = cast(dict[str, Any], OmegaConf.to_container(composed))
    groups = [word for word in HydraConfig.get().overrides.task if is_choice(word, "train")]
    return cast(TrainConfig, build("train", start_network(values, changes, groups), changes))
