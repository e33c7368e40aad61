"""A number that is shown when it arrives from the device, and for which nobody waits."""

from __future__ import annotations

import torch
from torch import Tensor


class Arrival:
    """Carries single numbers from a device to the host, the newest that has arrived being ``value``.

    A CUDA device copies into pinned memory in the order of its work, so a number arrives when the step it is of is
    done; until then no other is sent. Other devices are asked at once. Reading ``value`` asks no device for anything.
    """

    def __init__(self, device: torch.device) -> None:
        cuda = device.type == "cuda"
        self._there = torch.empty((), dtype=torch.float32, pin_memory=cuda)
        self._read = self._there.numpy()
        self._event = torch.cuda.Event() if cuda else None  # type: ignore[no-untyped-call]
        self._sent = False
        self._value: float | None = None

    def send(self, number: Tensor) -> None:
        """Let a scalar come, unless the one before is still on its way."""
        if not self._arrived():
            return
        self._there.copy_(number.detach().float(), non_blocking=self._event is not None)
        if self._event is not None:
            self._event.record()
        self._sent = True

    @property
    def value(self) -> float | None:
        """The newest number that has arrived; None before the first."""
        self._arrived()
        return self._value

    def _arrived(self) -> bool:
        if self._sent and (self._event is None or self._event.query()):  # type: ignore[no-untyped-call]
            self._value, self._sent = float(self._read), False
        return not self._sent
