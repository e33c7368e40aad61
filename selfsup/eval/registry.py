"""The protocols there are: each file of ``protocols/`` registers one, and so may a file of a user's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from selfsup.errors import UserError
from selfsup.eval.record import Record

Run = Callable[..., Iterator[Record]]

#: What a protocol can need beside images; the runner looks before anything is computed.
NEEDS = ("network", "dense", "labels", "multilabel", "real", "masks")
#: Those that are kinds of targets, of which a source has one.
TARGETS = ("labels", "multilabel", "real")


@dataclass(frozen=True)
class Protocol:
    """A way to measure features.

    Attributes:
        name: As ``--only`` takes it, and as its records carry it.
        run: ``(subject, settings) -> Iterator[Record]``.
        settings: Dataclass of its settings, or None.
        key: They are ``eval.KEY.…``.
        needs: Some of ``NEEDS``.
        plain: Whether it runs when nothing is asked for.
        by_name: Whether it runs only when it is asked for by name, as it takes long.
        shown: Fields that the console shows beside the value.
        summary: First line of its documentation.
    """

    name: str
    run: Run
    settings: type[Any] | None
    key: str
    needs: tuple[str, ...]
    plain: bool
    by_name: bool
    shown: tuple[str, ...]
    summary: str


#: By name. Each raises a ``UserError`` where the data or the network do not allow it.
PROTOCOLS: dict[str, Protocol] = {}


def protocol(
    name: str,
    settings: type[Any] | None = None,
    *,
    key: str | None = None,
    needs: tuple[str, ...] = (),
    plain: bool = False,
    by_name: bool = False,
    shown: tuple[str, ...] = (),
) -> Callable[[Run], Run]:
    """Decorate ``(subject, settings) -> Iterator[Record]`` so that evaluations run it.

    Args:
        name: The protocol's name.
        settings: Dataclass of its settings.
        key: Where they are below ``eval.``; None is the name. Protocols with one key share their settings.
        needs: What the data or the network must have: ``network`` (not raw pixels), ``dense`` (raw pixels, or a network
            with ``forward_dense``), ``labels`` (classes), ``multilabel`` or ``real`` targets, ``masks``.
        plain: Run it when nothing is asked for; it takes minutes at most.
        by_name: Run it only when it is asked for by name, not with all the others either.
        shown: Fields of its records that the console shows beside the value.

    Raises:
        UserError: Another file has registered the name.
    """
    assert set(needs) <= set(NEEDS), needs

    def add(run: Run) -> Run:
        if name in PROTOCOLS and PROTOCOLS[name].run.__module__ != run.__module__:
            raise UserError(f"The protocol '{name}' is already taken; register under another name.")
        summary = (run.__doc__ or "").strip().split("\n")[0]
        PROTOCOLS[name] = Protocol(name, run, settings, key or name, needs, plain, by_name, shown, summary)
        return run

    return add
