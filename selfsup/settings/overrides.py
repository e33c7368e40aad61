"""From ``key=value`` to a configuration: where a key belongs, what its value is, and what was probably meant."""

from __future__ import annotations

import copy
import dataclasses
import difflib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_origin, get_type_hints

from selfsup.errors import UserError
from selfsup.registry import REGISTRIES, nearest
from selfsup.settings.ranges import key_of
from selfsup.settings.values import from_text, from_value

#: What people call a setting elsewhere, and the last part of its key here.
SYNONYMS = {
    "epochs": "max_epochs",
    "num_epochs": "max_epochs",
    "n_epochs": "max_epochs",
    "learning_rate": "lr",
    "base_lr": "lr",
    "wd": "weight_decay",
    "bs": "batch_size",
    "batch": "batch_size",
    "gpus": "devices",
    "gpu": "devices",
    "num_gpus": "devices",
    "num_workers": "workers",
    "tau": "temperature",
    "arch": "backbone",
    "model": "backbone",
    "network": "backbone",
    "dataset": "data",
    "data_dir": "root",
    "data_path": "root",
    "path": "root",
    "folder": "root",
    "size": "image_size",
    "img_size": "image_size",
    "resolution": "image_size",
    "amp": "precision",
    "fp16": "precision",
    "grad_clip": "gradient_clip",
    "clip_grad": "gradient_clip",
    "accumulate_grad_batches": "accumulate",
    "random_seed": "seed",
    "output_dir": "run_dir",
    "out": "run_dir",
    "ckpt": "checkpoint",
}


@dataclass(frozen=True)
class Change:
    """One thing that differs: ``key=value``.

    Attributes:
        key: Such as ``optimizer.lr``.
        value: The text that was written, or a value.
        is_text: Which of the two.
        forced: ``++key=value``, which changes nothing where the chosen method or source has no such setting.
        removes: ``~key``, which takes an entry out of a dictionary.
    """

    key: str
    value: Any
    is_text: bool = True
    forced: bool = False
    removes: bool = False


def read_change(word: str) -> Change:
    """Return what an override says.

    Raises:
        UserError: It is not written ``key=value``.
    """
    key, given, text = word.partition("=")
    if word.startswith("~") and not given:
        return Change(word[1:], None, removes=True)
    if not given or not key.strip("+"):
        raise UserError(f"'{word}' is not a setting; write key=value.")
    return Change(key.lstrip("+"), text, forced=key.startswith("++"))


@dataclass(frozen=True)
class Schema:
    """The settings that a configuration has.

    Attributes:
        root: Its dataclass.
        sections: The dataclasses that were chosen in place of those that ``root`` names: ``{"method": MoCoConfig}``.
    """

    root: type[Any]
    sections: dict[str, type[Any]]

    def fields(self, section: type[Any], key: str = "") -> dict[str, Any]:
        """Return the types of a section's settings by name; ``key`` is the section's own."""
        return {
            name: self.sections.get(f"{key}.{name}" if key else name, hint) for name, hint in _hints(section).items()
        }

    def keys(self) -> list[str]:
        """Return the keys of all settings, in the order of the dataclasses."""
        return [key for key, hint in self._walk(self.root) if not dataclasses.is_dataclass(hint)]

    def _walk(self, section: type[Any], key: str = "") -> Iterator[tuple[str, Any]]:
        for name, hint in self.fields(section, key).items():
            full = f"{key}.{name}" if key else name
            yield full, hint
            if dataclasses.is_dataclass(hint):
                yield from self._walk(hint, full)  # type: ignore[arg-type]

    def find(self, key: str) -> tuple[Any, bool] | None:
        """Return the type of a setting, and whether it is an entry of a dictionary; None where there is no such key."""
        hint: Any = self.root
        path, in_dictionary = "", False
        for name in key.split("."):
            if dataclasses.is_dataclass(hint):
                fields = self.fields(hint, path)  # type: ignore[arg-type]
                if name not in fields:
                    return None
                hint, path = fields[name], f"{path}.{name}" if path else name
            elif (get_origin(hint) is dict or in_dictionary) and name:
                hint, in_dictionary = Any, True
            else:
                return None
        return hint, in_dictionary

    def build(self, values: dict[str, Any], changes: Iterable[Change] = ()) -> Any:
        """Return the configuration of these values and changes; later changes win.

        Raises:
            UserError: A key that there is not, a value of another type or out of its range.
        """
        values = copy.deepcopy(values)
        for name, hint in self.fields(self.root).items():
            if dataclasses.is_dataclass(hint) and isinstance(values.get(name), dict):
                values[name] = {key_of(inner): value for inner, value in values[name].items()}
        for change in changes:
            self._apply(change, values)
        return self._make(self.root, values)

    def _apply(self, change: Change, values: dict[str, Any]) -> None:
        key = change.key
        found = self.find(key)
        if found is None:
            if change.forced:
                return
            raise UserError(unknown_key(key, self))
        hint, in_dictionary = found
        *path, last = key.split(".")
        node = values
        for name in path:
            if not isinstance(node.get(name), dict):
                node[name] = {}
            node = node[name]
        if change.removes:
            if not in_dictionary or last not in node:
                raise UserError(f"~{key}: there is no such entry to take out; ~ takes out entries of dictionaries.")
            del node[last]
            return
        value = change.value
        if dataclasses.is_dataclass(hint):
            if not isinstance(value, dict) and not str(value).startswith("{"):
                raise UserError(self._section_message(key, hint, value))
            hint = dict[str, Any]
        value = from_text(value, hint, key) if change.is_text else from_value(value, hint, key)
        node[last] = _merge(node[last], value) if last in node else value

    def _section_message(self, key: str, section: Any, value: Any) -> str:
        fields = self.fields(section, key)
        if fields.get(str(value)) is bool:
            return f"{key}={value}: {key} holds several settings; write {key}.{value}=true."
        return f"{key}={value}: {key} holds several settings; set one of them, such as {key}.{next(iter(fields))}=…."

    def _make(self, section: type[Any], values: Any, key: str = "") -> Any:
        fields = self.fields(section, key)
        names = {key_of(f.name): f.name for f in dataclasses.fields(section)}
        if not isinstance(values, dict):
            raise UserError(f"{key} is {values!r}; it holds settings by name, such as {next(iter(fields))}.")
        given = {}
        for name, value in values.items():
            full = f"{key}.{name}" if key else str(name)
            if name not in fields:
                raise UserError(unknown_key(full, self))
            hint = fields[name]
            nested = dataclasses.is_dataclass(hint)
            given[names[name]] = self._make(hint, value, full) if nested else from_value(value, hint, full)
        return section(**given)


def _hints(section: type[Any]) -> dict[str, Any]:
    hints = get_type_hints(section, include_extras=True)
    return {key_of(f.name): hints[f.name] for f in dataclasses.fields(section) if f.init}


def _merge(old: Any, new: Any) -> Any:
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    return old | {name: _merge(old[name], item) if name in old else item for name, item in new.items()}


def unknown_key(key: str, schema: Schema) -> str:
    """Say that there is no such setting, and which one was probably meant."""
    sections = [name for name, hint in schema.fields(schema.root).items() if dataclasses.is_dataclass(hint)]
    section = key.rpartition(".")[0]
    others = {}
    if section in REGISTRIES and section in schema.sections:
        others = {name: set(_hints(REGISTRIES[section][name].config)) for name in REGISTRIES[section]}
    return misspelt(key, schema.keys(), sections, others)


def misspelt(key: str, keys: Sequence[str], sections: Sequence[str], others: Mapping[str, Collection[str]]) -> str:
    """Say that there is no such setting, and which one was probably meant.

    Args:
        key: What was written.
        keys: The settings that there are.
        sections: What some of them are grouped in, such as ``method``.
        others: The settings of the other choices of the key's section, where it is known which one was chosen.
    """
    section, _, last = key.rpartition(".")
    owners = [name for name, settings in others.items() if last in settings]
    if owners:
        return f"The chosen {section} has no setting '{key}'; these have one: {', '.join(owners)}."
    for wanted in (last, SYNONYMS.get(last.lower())):
        meant = [known for known in (*keys, *sections) if known.rpartition(".")[2] == wanted]
        if 0 < len(meant) <= 3:
            return f"There is no setting '{key}'. Did you mean {' or '.join(map(repr, meant))}?"
    if not section:  # a short name is like the end of a key, not like a key
        ends = {known.rpartition(".")[2]: known for known in (*reversed(keys), *sections)}
        if close := difflib.get_close_matches(last, ends, n=1, cutoff=0.75):
            return f"There is no setting '{key}'. Did you mean '{ends[close[0]]}'?"
    return f"There is no setting '{key}'.{nearest(key, keys)}"
