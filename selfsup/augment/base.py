"""What an operation is: a class with its settings, its random numbers and its arithmetic, registered under one name."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, TypeVar, dataclass_transform

import torch
from torch import Tensor

from selfsup.errors import UserError
from selfsup.settings import range_of, setting

Planes = tuple[Tensor, ...]  # one ``[B,h,w]`` a channel


@dataclass(frozen=True)
class Part:
    """A part of a view's recipe: settings, and random numbers that no other part sees."""

    name: ClassVar[str]
    #: Which of an image's random numbers are its own; they never change, so no part moves when another does.
    slots: ClassVar[tuple[int, ...]]
    #: Settings that ``augment.override`` calls by their own word, without the part's name before it.
    own_words: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        for key, name in self.keys().items():
            value, default = getattr(self, name), getattr(type(self), name)
            allowed = range_of(type(self), name)
            values = value if isinstance(value, tuple) else (value,)
            if not _is_like(value, default) or not (allowed is None or all(map(allowed.holds, values))):
                wanted = _WORDS.get(type(default), type(default).__name__) + (f", {allowed}" if allowed else "")
                raise UserError(f"View recipe: {key} is {value!r}; it must be {wanted}.")

    @classmethod
    def keys(cls) -> dict[str, str]:
        """Return the names of its settings by their keys in ``augment.override``: ``blur_p`` is the ``p`` of blur."""
        names = [field.name for field in dataclasses.fields(cls)]
        return {name if name in cls.own_words else f"{cls.name}_{name}": name for name in names}


class Drawn(NamedTuple):
    """What an operation has drawn for ``B`` images, on the CPU.

    Attributes:
        chosen: bool ``[B]``: whether it is applied.
        parameters: ``[B,…]`` by name.
    """

    chosen: Tensor
    parameters: dict[str, Tensor]


Step = tuple[Callable[..., Tensor], Tensor, dict[str, Tensor]]  # a function of images, and the rest as in ``Drawn``


@dataclass(frozen=True)
class Operation(Part):
    """What may happen to an image of a view after the crop.

    :func:`operation` registers a subclass and makes it a frozen dataclass. Its fields are its settings; a pair of
    numbers is a range, low and high.

    Attributes:
        p: Probability of each image.
    """

    #: How many random numbers an image takes beside the one that decides whether it is changed.
    numbers: ClassVar[int] = 0
    #: Whether it takes images of three channels alone; all others it leaves as they are.
    needs_color: ClassVar[bool] = False

    p: float = setting(0.5, least=0, most=1)

    def parameters(self, u: Tensor) -> dict[str, Tensor]:
        """Return what is drawn for each image, by name: float64 ``[B,numbers]``, uniform in [0, 1), to ``[B,…]``."""
        return {}

    def apply(self, images: Tensor, *args: Any, **parameters: Any) -> Tensor:
        """Return the changed images: float ``[k,C,h,w]`` in [0, 1], and their parameters on the same device."""
        raise NotImplementedError

    def movement(self, *args: Any, **parameters: Any) -> Tensor | None:
        """Return how pixels move; None where they stay.

        ``[k,2,3]`` or ``[2,3]``, the affine map from a point of the changed image to the same point of the one before,
        both unit squares with (0, 0) in the upper left corner; NaN where there is none.
        """
        return None

    def draw(self, u: Tensor) -> Drawn:
        """Return what is drawn from the random numbers of its slots, float64 ``[B,1 + numbers]``."""
        found = self.parameters(u[:, 1:])
        floats = {name: value.float() if value.is_floating_point() else value for name, value in found.items()}
        return Drawn(u[:, 0] < self.p, floats)

    def steps(self, drawn: Drawn, device: torch.device) -> Iterator[Step]:
        """Yield functions of images one after the other, each with the images it changes and their parameters."""
        yield self.apply, *drawn

    @staticmethod
    def on_planes(planes: Planes, argument: Tensor) -> Planes:
        """Return the changed planes of all images, for the compiled pass; an operation may do without."""
        raise NotImplementedError

    def lay_out(self, drawn: Drawn) -> Tensor:
        """Return the argument of ``on_planes``, ``[B,…]``: for every image, those that it leaves as they are too."""
        return drawn.chosen

    def of_color(self) -> list[str]:
        """Return what of it happens to images of three channels alone, by the name of the operation and its part."""
        return [self.name] if self.needs_color else []

    def alone(self) -> dict[str, Operation]:
        """Return what it does as operations that are sure to happen, by name."""
        return {self.name: dataclasses.replace(self, p=1.0)}


OPERATIONS: dict[str, type[Operation]] = {}

Kind = TypeVar("Kind", bound=type[Operation])


@dataclass_transform(frozen_default=True)
def operation(name: str) -> Callable[[Kind], Kind]:
    """Decorate a class so that it is a frozen dataclass and ``augment.operations`` can name it.

    Args:
        name: Its name, with which its keys in ``augment.override`` begin, and from which its random numbers follow.

    Raises:
        UserError: Another file has registered the name.
    """

    def add(kind: Kind) -> Kind:
        if name in OPERATIONS and OPERATIONS[name].__module__ != kind.__module__:
            raise UserError(f"The operation '{name}' is already taken; register under another name.")
        kind.name = name
        if "slots" in vars(kind):
            kind.numbers = len(kind.slots) - 1
        else:
            first = zlib.crc32(name.encode()) << 16  # far from each other, and from the slots that are given
            kind.slots = tuple(range(first, first + 1 + kind.numbers))
        OPERATIONS[name] = dataclass(frozen=True)(kind)
        return kind

    return add


def between(u: Tensor, low: float, high: float) -> Tensor:
    """Return numbers in [low, high) for numbers in [0, 1)."""
    return low + u * (high - low)


_WORDS = {float: "a number", tuple: "a pair, low and high", bool: "true or false", int: "a whole number", str: "a word"}


def _is_like(value: Any, default: Any) -> bool:
    """Whether a value is of the type of the default."""
    if isinstance(default, tuple):
        pair = isinstance(value, tuple) and len(value) == len(default) and all(map(_is_like, value, default))
        return pair and (len(value) != 2 or value[0] <= value[1])
    if isinstance(default, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return default is None or type(value) is type(default)
