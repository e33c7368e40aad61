"""Neighbouring operations of a whole batch in one compiled pass over its pixels.

Eagerly, each operation runs on the images that drew it. A compiled pass runs the same steps for every image, and those
that an image does not use change nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from selfsup.augment.base import Drawn, Operation, Planes
from selfsup.shortage import lacks_memory

logger = logging.getLogger(__name__)

Steps = tuple[Callable[[Planes, Tensor], Planes], ...]


def compiled_pass(images: Tensor, operations: Sequence[Operation], drawn: Mapping[str, Drawn]) -> Tensor | None:
    """Apply operations that have an ``on_planes`` by compiled code; return None where it could not be compiled.

    The first batch of a size compiles; the number of images is left open, so that no other batch does.

    Args:
        images: float ``[B,C,h,w]`` in [0, 1].
        operations: In order.
        drawn: By the name of the operation.
    """
    steps = tuple(o.on_planes for o in operations)
    arguments = [o.lay_out(drawn[o.name]).to(images.device) for o in operations]
    return _function(steps, images.shape[1:], images.device.type)(images, *arguments)


def one_pass(steps: Steps) -> Callable[..., Tensor]:
    """Return the function that takes images, and an argument for each step, through all steps, plane by plane."""

    def run(images: Tensor, *arguments: Tensor) -> Tensor:
        planes: Planes = images.unbind(1)
        for step, argument in zip(steps, arguments, strict=True):
            planes = step(planes, argument)
        return torch.stack(planes, dim=1)

    run.__code__ = run.__code__.replace()  # a copy, as torch counts and limits the compilations of a code
    return run


@cache
def _function(steps: Steps, shape: torch.Size, device: str) -> Callable[..., Tensor | None]:
    """Return compiled code for images of one shape."""
    function = torch.compile(one_pass(steps), fullgraph=True)
    state = {"works": False, "failed": False}

    def run(*arguments: Any) -> Tensor | None:
        if state["failed"]:
            return None
        for argument in arguments:
            torch._dynamo.mark_dynamic(argument, 0)
        start = time.perf_counter()
        try:
            result: Tensor = function(*arguments)
        except Exception as error:  # of the compiler, in any of its many types
            if state["works"] or lacks_memory(error):
                raise
            state["failed"] = True
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            logger.warning("augment.compile: the views are made without compiled code, as it failed: %s", reason)
            return None
        if not state["works"]:
            state["works"] = True
            seconds = time.perf_counter() - start
            logger.info("augment.compile: compiled the colours of %s pixels in %.0f s", list(shape[1:]), seconds)
        return result

    return run
