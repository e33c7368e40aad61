"""What the functions of this package refuse: one sentence that names the argument, in place of a wrong number.

Types, shapes, devices and settings are looked at always, which takes microseconds. Whether a tensor holds NaN or
infinity is looked at where that costs no waiting: on a CPU, outside of a training step. On a GPU, where the host would
have to wait for the device, such values go through, and show in the result as NaN.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator
from contextvars import ContextVar
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

#: The squares of values beyond these overflow float32, or vanish in it.
SMALL, LARGE = 1e-15, 1e17

_values_are_trusted: ContextVar[bool] = ContextVar("_values_are_trusted", default=False)


def full_precision(x: Tensor) -> Tensor:
    """Return ``x`` in float32, or as it is when it already has at least that precision."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


@contextlib.contextmanager
def trusted_values() -> Iterator[None]:
    """Let NaN and infinity pass inside: a training step has a rule of its own for a loss that is not finite."""
    token = _values_are_trusted.set(True)
    try:
        yield
    finally:
        _values_are_trusted.reset(token)


def floats(function: str, shapes: str, *, nan: bool = False, **tensors: Tensor) -> tuple[Tensor, ...]:
    """Return real tensors in one precision, float32 at least, after a look at them.

    Where values are looked at, values whose squares float32 does not hold are taken in float64, all tensors with them.

    Args:
        function: Who asks, for the message.
        shapes: Of each tensor, or one for all, such as ``"[N,D] [K,D]"``: a letter is one size throughout, a letter
            with ``?`` may be 0, and ``...`` in front stands for any more sizes.
        nan: Whether NaN is among the documented values.
        tensors: By name of argument.

    Raises:
        ValueError: No tensor, one that is sparse or holds no floats, another shape or device, no elements; NaN or
            infinity, where it is looked for.
    """
    wanted = _parsed(shapes) * (len(tensors) if " " not in shapes else 1)
    sizes: dict[str, tuple[int, str]] = {}
    first = next(iter(tensors))
    for (name, tensor), shape in zip(tensors.items(), wanted, strict=True):
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or tensor.layout != torch.strided:
            raise ValueError(f"{function}: {name} must be a tensor of floats {_written(shape)}, got {kind(tensor)}.")
        fit(function, name, tensor, shape, sizes)
        if tensor.is_meta and not torch.compiler.is_compiling():
            raise ValueError(f"{function}: {name} is on the device meta, which holds no values.")
        if tensor.device != tensors[first].device:
            raise ValueError(f"{function}: {first} is on {tensors[first].device} and {name} on {tensor.device}.")
    extreme = finite(function, nan=nan, **tensors)
    precise = [full_precision(tensor) for tensor in tensors.values()]
    if extreme or len({tensor.dtype for tensor in precise}) > 1:
        precise = [tensor.double() for tensor in precise]
    return tuple(precise)


def integers(function: str, shape: str, **tensors: Tensor) -> None:
    """Look at tensors of whole numbers, such as labels, each of the shape, see :func:`floats`.

    Raises:
        ValueError: No tensor of whole numbers, or another shape.
    """
    for name, tensor in tensors.items():
        whole = isinstance(tensor, Tensor) and not (tensor.is_floating_point() or tensor.is_complex())
        if not whole or tensor.dtype == torch.bool or tensor.layout != torch.strided:
            raise ValueError(f"{function}: {name} must be a tensor of whole numbers {shape}, got {kind(tensor)}.")
        if tensor.is_meta and not torch.compiler.is_compiling():
            raise ValueError(f"{function}: {name} is on the device meta, which holds no values.")
        fit(function, name, tensor, _parsed(shape)[0], {})


def finite(function: str, nan: bool = False, **tensors: Tensor) -> bool:
    """Look for NaN and infinity, where that costs no waiting; return whether there are squares float32 does not hold.

    Args:
        nan: Whether NaN is allowed.

    Raises:
        ValueError: There is one.
    """
    extreme = False
    for name, tensor in tensors.items():
        if looks_at(tensor) and tensor.numel():
            values = tensor.detach().nan_to_num(0.0, math.inf, -math.inf) if nan else tensor.detach()
            low, high = values.aminmax()  # no copy: it may be large
            magnitude = max(-float(low), float(high)) if low == low else math.nan
            if not magnitude < math.inf:
                bad = int((~values.isfinite()).sum())
                what = "infinite" if nan else "NaN or infinite"
                raise ValueError(f"{function}: {bad} of the {values.numel()} values of {name} are {what}.")
            extreme |= magnitude > LARGE or 0 < magnitude < SMALL
    return extreme


def looks_at(*tensors: Tensor) -> bool:
    """Whether values are looked at: outside of a training step, where all tensors are on a CPU."""
    if _values_are_trusted.get() or torch.compiler.is_compiling():
        return False
    return all(tensor.device.type == "cpu" for tensor in tensors)


def answer(function: str, value: Tensor, argument: str, fault: str = "are too large for the arithmetic") -> Tensor:
    """Return a result, after a look for NaN and infinity where that costs no waiting.

    Args:
        argument: Whose finite values are to blame.
        fault: In which way.

    Raises:
        ValueError: The result is not finite.
    """
    if looks_at(value) and not value.detach().isfinite().all():
        raise ValueError(f"{function}: the values of {argument} {fault}.")
    return value


def number(
    function: str, *, above: float = -math.inf, below: float = math.inf, least: float | None = None, **values: Any
) -> None:
    """Look at settings that are real numbers between two bounds, which they do not reach (``least`` they may).

    Raises:
        ValueError: Another type, NaN, or outside the bounds.
    """
    for name, value in values.items():
        if isinstance(value, Tensor) and value.ndim == 0 and value.is_floating_point():
            if value.device.type != "cpu":
                continue  # one that is learnt; to look at it the host would have to wait
            value = value.item()
        real = isinstance(value, Real) and not isinstance(value, bool)
        if not real or not above < value < below or (least is not None and value < least):
            bounds = [f"above {above:g}"] if above > -math.inf else []
            bounds += [f"at least {least:g}"] if least is not None else []
            bounds += [f"below {below:g}"] if below < math.inf else []
            raise ValueError(
                f"{function}: {name} must be a number {' and '.join(bounds) or 'that is finite'}, got {value!r}."
            )


def count(function: str, least: int = 1, **values: Any) -> None:
    """Look at settings that are whole numbers.

    Raises:
        ValueError: Another type, or below ``least``.
    """
    for name, value in values.items():
        if not is_count(value, least):
            raise ValueError(f"{function}: {name} must be a whole number from {least} on, got {value!r}.")


def is_count(value: object, least: int = 1) -> bool:
    """Whether a value is a whole number from ``least`` on; truth values are none."""
    return not isinstance(value, bool) and isinstance(value, Integral) and int(value) >= least


def within(function: str, least: int, below: int, **tensors: Tensor) -> None:
    """Look whether whole numbers lie in a range, where that costs no waiting.

    Raises:
        ValueError: One does not.
    """
    for name, tensor in tensors.items():
        if looks_at(tensor) and tensor.numel():
            low, high = int(tensor.min()), int(tensor.max())
            if low < least or high >= below:
                raise ValueError(f"{function}: {name} must be from {least} to {below - 1}, got {low} to {high}.")


def fit(function: str, name: str, tensor: Tensor, shape: tuple[str, ...], sizes: dict[str, tuple[int, str]]) -> None:
    """Look at a shape, and note the size that each letter stands for in ``sizes``, with the argument that said it."""
    leading = tensor.ndim - len(shape) + 1 if shape[0] == "..." else 0
    letters = shape[1:] if shape[0] == "..." else shape
    if tensor.ndim - max(leading, 0) != len(letters):
        raise ValueError(f"{function}: {name} must have the shape {_written(shape)}, got {list(tensor.shape)}.")
    for letter, size in zip(letters, tensor.shape[tensor.ndim - len(letters) :], strict=True):
        if size == 0 and not letter.endswith("?"):
            raise ValueError(f"{function}: {name} is empty, of the shape {list(tensor.shape)}.")
        known, who = sizes.setdefault(letter.rstrip("?"), (int(letter) if letter.isdigit() else size, name))
        if size != known:
            other = "" if who == name else f", which does not fit the shape of {who}"
            raise ValueError(f"{function}: {name} {_written(shape)} has the shape {list(tensor.shape)}{other}.")


def kind(value: object) -> str:
    """What an argument is, for a message."""
    if not isinstance(value, Tensor):
        return "None" if value is None else f"a {type(value).__name__}"
    sparse = "" if value.layout == torch.strided else "sparse "
    return f"{sparse}{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"


@functools.cache
def _parsed(shapes: str) -> list[tuple[str, ...]]:
    return [tuple(shape.strip("[]").split(",")) for shape in shapes.split()]


def _written(shape: tuple[str, ...]) -> str:
    return f"[{','.join(shape).replace('?', '')}]"
