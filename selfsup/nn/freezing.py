"""What of a network stays as it is while the rest learns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from torch import nn

from selfsup.errors import UserError
from selfsup.nn.backbone import Backbone
from selfsup.registry import nearest


def freeze(backbone: Backbone, names: Sequence[str]) -> list[str]:
    """Freeze weights of a backbone, and return their names.

    They get no gradient, so that no optimiser decays or moves them. A module whose weights are all frozen, or that is
    named itself, runs as in evaluation: its BatchNorm normalises with the running statistics, which stay, and its
    dropout and drop path let everything through.

    Args:
        backbone: Is changed in place.
        names: Of modules and weights in its network; a name stands for all below it, and may hold wildcards.

    Raises:
        UserError: A name fits nothing, or all weights would be frozen.
    """
    network = backbone.network
    weights = dict(network.named_parameters())
    modules = [name for name, _ in network.named_modules() if name]
    for name in names:
        if not any(fnmatchcase(known, name) for known in (*modules, *weights)):
            outer = dict.fromkeys(known.partition(".")[0] for known in (*weights, *modules))
            near = nearest(name, (*modules, *weights))
            raise UserError(
                f"backbone.freeze: nothing in the network is named '{name}'; it has {', '.join(outer)}.{near}"
            )
    frozen = [key for key in weights if any(fnmatchcase(part, name) for part in _above(key) for name in names)]
    if len(frozen) == len(weights):
        raise UserError("backbone.freeze leaves nothing of the backbone to learn; leave some of its layers out.")
    for key in frozen:
        weights[key].requires_grad_(False)
    kept = set(frozen)
    backbone.still = tuple(
        name
        for name in modules
        if any(fnmatchcase(part, pattern) for part in _above(name) for pattern in names)
        or _all_in(kept, name, network.get_submodule(name))
    )
    backbone.train(backbone.training)
    return frozen


def _above(name: str) -> Iterator[str]:
    """Yield the names of the modules that hold a weight or a module, the outermost first, and its own."""
    parts = name.split(".")
    yield from (".".join(parts[:count]) for count in range(1, len(parts) + 1))


def _all_in(kept: set[str], name: str, module: nn.Module) -> bool:
    own = [f"{name}.{key}" for key, _ in module.named_parameters()]
    return bool(own) and kept.issuperset(own)
