"""A step looked at part by part: where its first number is that is not finite."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from selfsup.augment import ViewGenerator
from selfsup.functional.arguments import trusted_values
from selfsup.methods import Method
from selfsup.types import Batch


@dataclass(frozen=True)
class Seen:
    """One of the tensors of a step.

    Attributes:
        what: In words: "the output of backbone.network.conv1 (Conv2d)".
        before: Whether it was there before the step.
        largest: Its largest finite magnitude; 0 where none is finite.
        bad: Its numbers that are NaN or infinite.
        count: Its numbers.
    """

    what: str
    largest: float
    bad: int
    count: int
    before: bool = False

    def __str__(self) -> str:
        time = ", before the step" if self.before else ""
        return f"{self.what}{time} ({self.bad:,} of {self.count:,} numbers)" if self.count > 1 else f"{self.what}{time}"

    @classmethod
    def of(cls, what: str, value: Tensor, before: bool = False) -> Seen:
        value = value.detach()
        finite = value.isfinite()
        largest = float(value.abs().where(finite, 0).max()) if value.numel() else 0.0
        return cls(what, largest, int((~finite).sum()), value.numel(), before)


@dataclass(frozen=True)
class Trace:
    """A step: its loss, and its tensors in the order in which they came to be."""

    loss: Tensor
    seen: list[Seen]

    @property
    def place(self) -> Seen | None:
        """The first that is not finite."""
        return next((seen for seen in self.seen if seen.bad), None)


def trace(method: Method, batch: Batch, batch_idx: int, context: AbstractContextManager[Any]) -> Trace:
    """Take a step up to its gradients, and look at weights, views, outputs of modules, loss and gradients.

    Buffers change as in any step, and gradients are added to those that are there.

    Args:
        method, batch, batch_idx: The step.
        context: Of its forward pass: the precision.
    """
    state = [(name, value) for name, value in method.state_dict().items() if value.is_floating_point()]
    seen = [Seen.of(name, value, before=True) for name, value in state]
    with context, trusted_values():
        views = method.draw_views(batch, batch_idx)
        seen += [Seen.of(f"view {number + 1}", view.image) for number, view in enumerate(views)]
        with _looking(method, seen):
            loss = method.held_step(views, batch).loss
    seen.append(Seen.of("the loss", loss))
    if not seen[-1].bad:
        loss.backward()  # type: ignore[no-untyped-call]
        seen += [Seen.of(f"the gradient of {name}", value) for name, value in gradients_of(method).items()]
    return Trace(loss.detach(), seen)


@contextlib.contextmanager
def _looking(method: Method, seen: list[Seen]) -> Iterator[None]:
    """Note what modules return, innermost first as they end, and later the gradients that come back to there."""

    def look(what: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            for value in output if isinstance(output, tuple | list) else (output,):
                if isinstance(value, Tensor) and value.is_floating_point():
                    seen.append(Seen.of(f"the output of {what}", value))
                    if value.requires_grad:
                        value.register_hook(gradient)  # type: ignore[no-untyped-call]

        def gradient(value: Tensor) -> None:
            seen.append(Seen.of(f"the gradient at the output of {what}", value))

        return hook

    generators = [name for name, module in method.named_modules() if isinstance(module, ViewGenerator)]
    with contextlib.ExitStack() as hooks:
        for name, module in method.named_modules():
            if name and not any(name == other or name.startswith(f"{other}.") for other in generators):
                handle = module.register_forward_hook(look(f"{name} ({type(module).__name__})"))
                hooks.callback(handle.remove)
        yield


def gradients_of(method: Method) -> dict[str, Tensor]:
    """Return the gradients that the present step moves parameters by, by the names of these."""
    frozen = {id(parameter) for parameter in method.frozen()}
    named = method.named_parameters()
    return {name: value.grad for name, value in named if value.grad is not None and id(value) not in frozen}


def finite(tensors: list[Tensor]) -> bool:
    """Whether all numbers are finite; a look at sums of squares, and at each number only where one is not."""
    if not tensors:
        return True
    norms = torch.stack(list(torch._foreach_norm(tensors)))
    return bool(norms.isfinite().all()) or all(bool(tensor.isfinite().all()) for tensor in tensors)
