"""From ``key=value`` to a configuration: where a key belongs, what its value is, and what was probably meant."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from typing import Any, get_origin, get_type_hints

from selfsup.errors import UserError
from selfsup.registry import REGISTRIES
from selfsup.settings.meanings import Known, misspelt, of_section
from selfsup.settings.ranges import key_of
from selfsup.settings.values import from_text, from_value


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


def words_of(settings: Mapping[str, Any], key: str = "") -> list[str]:
    """Return settings by name as overrides: ``method="moco", trainer={"max_epochs": 20}``.

    A dictionary holds the settings of a section; the ``name`` of a method or of data is the choice.

    Args:
        settings: Text, numbers, truth values, None, and lists and dictionaries of them.
        key: How the keys begin.
    """
    words = []
    for name, value in settings.items():
        full = f"{key}.{name}" if key else name
        if isinstance(value, Mapping):
            chosen = not key and name in REGISTRIES and "name" in value
            words += [f"{name}={value['name']}"] if chosen else []
            words += words_of({k: v for k, v in value.items() if not (chosen and k == "name")}, full)
        elif isinstance(value, list | tuple) or value is None or isinstance(value, bool):
            words.append(f"{full}={json.dumps(value, ensure_ascii=False, default=str)}")
        else:
            words.append(f"{full}={value}")
    return words


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

    def known(self) -> Known:
        """Return the settings, in the order of the dataclasses, as messages need them."""
        walked = dict(self._walk(self.root))
        keys = {key: getattr(hint, "__name__", str(hint)) for key, hint in walked.items() if not is_dataclass(hint)}
        others = {
            group: {name: set(_hints(registry[name].config)) for name in registry}
            for group, registry in REGISTRIES.items()
            if group in self.sections
        }
        sections = [key for key, hint in walked.items() if is_dataclass(hint) and "." not in key]
        return Known("evaluate" if "checkpoint" in keys else "train", keys, sections, others)

    def _walk(self, section: type[Any], key: str = "") -> Iterator[tuple[str, Any]]:
        for name, hint in self.fields(section, key).items():
            full = f"{key}.{name}" if key else name
            yield full, hint
            if is_dataclass(hint):
                yield from self._walk(hint, full)  # type: ignore[arg-type]

    def find(self, key: str) -> tuple[Any, bool] | None:
        """Return the type of a setting, and whether it is an entry of a dictionary; None where there is no such key."""
        hint: Any = self.root
        path, in_dictionary = "", False
        for name in key.split("."):
            if is_dataclass(hint):
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
            if is_dataclass(hint) and isinstance(values.get(name), dict):
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
            raise UserError(misspelt(key, "" if change.value is None else str(change.value), self.known()))
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
        if is_dataclass(hint):
            if not isinstance(value, dict) and not str(value).startswith("{"):
                raise UserError(of_section(key, str(value), self.known()))
            hint = dict[str, Any]
        value = from_text(value, hint, key) if change.is_text else from_value(value, hint, key)
        node[last] = _merge(node[last], value) if last in node else value

    def _make(self, section: type[Any], values: Any, key: str = "") -> Any:
        fields = self.fields(section, key)
        names = {key_of(f.name): f.name for f in dataclasses.fields(section)}
        if not isinstance(values, dict):
            raise UserError(f"{key} is {values!r}; it holds settings by name, such as {next(iter(fields))}.")
        given = {}
        for name, value in values.items():
            full = f"{key}.{name}" if key else str(name)
            if name not in fields:
                raise UserError(misspelt(full, "", self.known()))
            hint = fields[name]
            nested = is_dataclass(hint)
            given[names[name]] = self._make(hint, value, full) if nested else from_value(value, hint, full)
        return section(**given)


def _hints(section: type[Any]) -> dict[str, Any]:
    hints = get_type_hints(section, include_extras=True)
    return {key_of(f.name): hints[f.name] for f in dataclasses.fields(section) if f.init}


def _merge(old: Any, new: Any) -> Any:
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    return old | {name: _merge(old[name], item) if name in old else item for name, item in new.items()}
