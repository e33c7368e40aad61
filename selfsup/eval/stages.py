"""The stages of a network, and what comes out of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

ACTIVATIONS = (nn.ReLU, nn.GELU, nn.SiLU, nn.LeakyReLU, nn.ELU, nn.Hardswish, nn.Sigmoid, nn.Tanh)


def stages(backbone: nn.Module) -> dict[str, tuple[nn.Module, int | None]]:
    """Return the stages of a network by name, in order, each with the number of its channels where that is known."""
    network: nn.Module = getattr(backbone, "network", backbone)
    modules = dict(network.named_modules())
    information: Any = getattr(network, "feature_info", None) or ()
    known = {
        str(entry["module"]): (modules[str(entry["module"])], int(entry["num_chs"]))
        for entry in (information if isinstance(information, Sequence) else ())
        if str(entry.get("module")) in modules
    }
    if known:
        return dict(known)
    path, children = "", dict(network.named_children())
    while len(children) == 1 and any(True for _ in next(iter(children.values())).children()):
        name, inside = next(iter(children.items()))
        path, children = f"{path}{name}.", dict(inside.named_children())
    activations = {name: module for name, module in children.items() if isinstance(module, ACTIVATIONS)}
    return {f"{path}{name}": (module, None) for name, module in (activations or children).items()}


@contextmanager
def watch(backbone: nn.Module, head: nn.Module | None) -> Iterator[dict[str, Tensor]]:
    """Fill a dictionary with the pooled output of every stage and every step of the head at each forward pass."""
    network: nn.Module = getattr(backbone, "network", backbone)
    prefix = int(getattr(network, "num_prefix_tokens", 0))
    seen: dict[str, Tensor] = {}

    def keep(name: str, channels: int | None) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and 2 <= output.ndim <= 4:
                seen[name] = _pooled(output, channels, prefix)

        return hook

    handles = [module.register_forward_hook(keep(name, wide)) for name, (module, wide) in stages(backbone).items()]
    if head is not None:
        for number, module in enumerate(head_steps(head), start=1):
            handles.append(module.register_forward_hook(keep(f"head.{number}", None)))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def head_steps(head: nn.Module) -> list[nn.Module]:
    """Return the hidden activations of a head; what follows the last of them is its embedding."""
    return [module for module in head.children() if isinstance(module, ACTIVATIONS)]


def _pooled(output: Tensor, channels: int | None, prefix: int) -> Tensor:
    if output.ndim == 4:
        innermost = channels is not None and output.shape[1] != channels and output.shape[3] == channels
        return output.mean((1, 2) if innermost else (2, 3))
    if output.ndim == 3:
        return output[:, prefix:].mean(1)
    # a copy, as an activation that works in place may follow
    return output.clone()
