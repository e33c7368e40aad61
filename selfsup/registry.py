"""Names to what they call: methods, data sources and objectives register themselves as choices of the configuration."""

from __future__ import annotations

import dataclasses
import difflib
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.resources import files
from typing import Any, Generic, TypeVar, cast

from selfsup.errors import UserError
from selfsup.imports import hint

T = TypeVar("T")


def nearest(word: str, known: Iterable[str]) -> str:
    """Return " Did you mean …?" for the nearest known word, else the list of what there is when it is short."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return f" Did you mean '{close[0]}'?"
    return f" There are: {', '.join(known)}." if len(known) <= 40 else ""


def find(word: str, known: Iterable[str], other_names: Mapping[str, str] | None = None) -> str:
    """Return the known name that a word means: case, hyphens, underscores and spaces do not matter.

    ``SimCLR`` is ``simclr``, ``barlow-twins`` is ``barlow_twins``. A word that is not such a name is returned as it is.

    Args:
        word: What a person wrote.
        known: The names.
        other_names: What else some of them are known by, to their names.

    Raises:
        UserError: It fits two of them.
    """
    meant = dict(other_names or {}) | {name: name for name in known}
    if word in meant:
        return meant[word]
    fitting = sorted({name for other, name in meant.items() if _plain(other) == _plain(word)})
    if len(fitting) > 1:
        raise UserError(f"'{word}' may be {' or '.join(fitting)}; write the one that is meant.")
    return fitting[0] if fitting else word


def _plain(word: str) -> str:
    return "".join(character for character in word.casefold() if character not in "-_ ")


@dataclass(frozen=True)
class Entry(Generic[T]):
    """A registered thing, the dataclass of its settings, the first line of its documentation, and what comes with it.

    ``choices`` are those of other groups, such as ``optimizer: lars``. ``over`` says over what it contrasts, see
    :func:`fits`.
    """

    name: str
    target: T
    config: type[Any]
    summary: str
    choices: dict[str, str] = dataclasses.field(default_factory=dict)
    over: tuple[str, ...] = ()


class Registry(Generic[T]):
    """The choices of one configuration group."""

    def __init__(self, group: str) -> None:
        self.group = group
        self.other_names: dict[str, str] = {}
        self._entries: dict[str, Entry[T]] = {}

    def register(
        self, name: str, config: type[Any], *, also: tuple[str, ...] = (), over: tuple[str, ...] = (), **overrides: str
    ) -> Callable[[T], T]:
        """Decorate a class or function so that ``group=name`` selects it.

        Args:
            name: The name in configs and on the command line.
            config: Dataclass of its settings; the schema of the group's choice, holding the defaults.
            also: What else people call it.
            over: Of a method: over what its loss contrasts, where another objective may take its place. Of an
                objective, or of negatives: over what they can. See :func:`fits`.
            overrides: Choices of other groups that come with it, such as ``optimizer="lars"``. Experiments and the
                command line win over them.
        """

        from hydra.core.config_store import ConfigStore  # takes a third of a second, which names alone do not need

        def add(target: T) -> T:
            if name in self._entries and self._entries[name].target.__module__ != target.__module__:
                raise UserError(f"{self.group} '{name}' is already taken; register under another name.")
            summary = (target.__doc__ or "").strip().split("\n")[0]
            self._entries[name] = Entry(name, target, config, summary, overrides, over)
            self.other_names |= dict.fromkeys(also, name)
            ConfigStore.instance().store(group=self.group, name=name, node=with_defaults(config, overrides))
            return target

        return add

    def __getitem__(self, name: str) -> Entry[T]:
        found = find(name, self._entries, self.other_names)
        if found not in self._entries:
            raise UserError(f"Unknown {self.group} '{name}'.{hint() or nearest(name, self._entries)}")
        return self._entries[found]

    def of(self, target: object, name: str | None = None) -> Entry[T]:
        """Return the entry of a registered class or function: its first, or that called ``name``.

        Raises:
            UserError: It is not registered, or under other names.
        """
        found = {entry.name: entry for entry in self._entries.values() if entry.target is target}
        if not found:
            raise UserError(
                f"{getattr(target, '__name__', target)} is not a registered {self.group}; register it first."
            )
        if name is not None and name not in found:
            raise UserError(f"{getattr(target, '__name__', target)} is not called '{name}'.{nearest(name, found)}")
        return found[name] if name is not None else next(iter(found.values()))

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))

    def __contains__(self, name: object) -> bool:
        return name in self._entries


def with_defaults(config: type[Any], overrides: dict[str, str]) -> type[Any]:
    """Give the dataclass a Hydra defaults list; Hydra takes the field out when it composes."""
    if not overrides:
        return config
    defaults: list[Any] = [
        *({f"override /{group}@_global_.{group}": choice} for group, choice in overrides.items()),
        "_self_",
    ]
    new_field = ("defaults", list[Any], dataclasses.field(default_factory=lambda: list(defaults)))
    return dataclasses.make_dataclass(config.__name__, [new_field], bases=(config,))


methods: Registry[Any] = Registry("method")
sources: Registry[Any] = Registry("data")
objectives: Registry[Any] = Registry("objective")
negatives: Registry[Any] = Registry("negatives")

#: By group: the sections of a configuration of which each choice has settings of its own.
REGISTRIES: dict[str, Registry[Any]] = {
    registry.group: registry for registry in (methods, sources, objectives, negatives)
}


#: Over what a contrastive method contrasts, in words for messages.
OVER = {
    "views": "the views of the images of a batch",
    "labels": "the images of a batch by their labels",
    "queue": "a query, its key and a queue of earlier keys",
}


def fits(method: Iterable[str], objective: Iterable[str]) -> bool:
    """Whether a method can take an objective, or negatives, by the ``over`` of both (words of ``OVER``)."""
    return bool(set(method) & set(objective))


def choice(group: str, name: str, schema: type[T]) -> T:
    """Return the settings of a YAML file of the package's configurations, such as ``optimizer`` ``lars``."""
    from omegaconf import DictConfig, OmegaConf

    values = OmegaConf.create((files("selfsup.configs") / group / f"{name}.yaml").read_text("utf-8"))
    cast(DictConfig, values).pop("defaults", None)
    return cast(T, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), values)))


def import_files(package: str, folders: Iterable[str]) -> None:
    """Import every file of a package, so that what is registered there needs no list.

    Args:
        package: Its name, ``__name__`` of its ``__init__.py``.
        folders: Its ``__path__``.
    """
    for module in pkgutil.iter_modules(folders):
        import_module(f"{package}.{module.name}")
