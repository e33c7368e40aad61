"""Any other Kornia augmentation by its class name, between the fused operations and normalisation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import kornia.augmentation as kornia_augmentation
import torch
from torch import Tensor, nn

from selfsup.errors import UserError
from selfsup.functional.geometry import compose, warp_to_source
from selfsup.imports import hint
from selfsup.registry import nearest


def build_extra(entries: Sequence[Mapping[str, Any]]) -> nn.ModuleList:
    """Build the augmentations of ``AugmentConfig.extra``.

    Raises:
        UserError: An entry without ``name`` or with keys beside ``name`` and ``params``, a class that Kornia does not
            have, or parameters that the class refuses.
    """
    return nn.ModuleList(_build(position, entry) for position, entry in enumerate(entries))


def apply_extra(extra: nn.ModuleList, image: Tensor, to_source: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Apply the augmentations in order, seeded, leaving the global random state as it was.

    Args:
        extra: From ``build_extra``.
        image: float ``[B,C,h,w]`` in [0, 1].
        to_source: ``[B,2,3]`` of the image, see ``View``.
        seed: Of all the augmentations of this view of this batch.

    Returns:
        The new image and its ``to_source``, NaN for the images that were moved by more than an affine map.
    """
    device = image.device
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices, device_type="cuda" if device.type == "cpu" else device.type):
        torch.manual_seed(seed)
        for augmentation in extra:
            before = (image.shape[-2], image.shape[-1])
            image = augmentation(image)
            after = (image.shape[-2], image.shape[-1])
            to_source = compose(to_source, _movement(augmentation, to_source, before, after))
    return image, to_source


def _build(position: int, entry: Mapping[str, Any]) -> nn.Module:
    where = f"augment.extra[{position}]"
    if not isinstance(entry, Mapping) or "name" not in entry or set(entry) - {"name", "params"}:
        raise UserError(f"{where} is {entry!r}; it takes the keys 'name' and, if need be, 'params'.")
    known = _known()
    name = entry["name"]
    if name not in known:
        raise UserError(f"{where}.name: Kornia has no 2D augmentation '{name}'.{hint() or nearest(str(name), known)}")
    params = entry.get("params") or {}
    if not isinstance(params, Mapping):
        raise UserError(f"{where}.params is {params!r}; it takes the arguments of {name} by name.")
    try:
        return known[name](**{key: tuple(value) if isinstance(value, list) else value for key, value in params.items()})
    except Exception as error:  # each class has its own checks and kinds of error
        raise UserError(f"{where}.params: {name} refuses them: {error}") from error


def _known() -> dict[str, type[nn.Module]]:
    """Return Kornia's augmentations of single images and a user's own subclasses; mixtures have no source to point to.

    Raises:
        UserError: A class of the user's own has the name of another.
    """
    base: type[nn.Module] = kornia_augmentation.AugmentationBase2D
    known = {
        name: value
        for name, value in vars(kornia_augmentation).items()
        if isinstance(value, type) and issubclass(value, base) and not name.endswith("Base2D")
    }
    for own in _below(base):
        if not own.__module__.startswith("kornia."):
            if own.__name__ in known and known[own.__name__].__module__ != own.__module__:
                raise UserError(f"augment.extra: {own.__module__}.{own.__name__} has the name of another; rename it.")
            known[own.__name__] = own
    return known


def _below(base: type[nn.Module]) -> Iterator[type[nn.Module]]:
    for own in base.__subclasses__():
        yield own
        yield from _below(own)


def _movement(augmentation: nn.Module, like: Tensor, before: tuple[int, int], after: tuple[int, int]) -> Tensor:
    """Return ``[B,2,3]``, the map from the augmented image to the one before it."""
    if isinstance(augmentation, kornia_augmentation.IntensityAugmentationBase2D):
        return torch.eye(2, 3, dtype=like.dtype, device=like.device).expand_as(like)
    if isinstance(augmentation, kornia_augmentation.GeometricAugmentationBase2D):
        matrix = augmentation.transform_matrix.to(like)
        bent = (matrix[:, 2, :2] != 0).any(dim=1)
        movement = warp_to_source(matrix, before, after)
    else:  # a free deformation has no matrix
        parameters = cast(dict[str, Tensor], augmentation._params)
        bent = parameters["batch_prob"].to(like.device) > 0.5
        movement = torch.eye(2, 3, dtype=like.dtype, device=like.device).repeat(len(like), 1, 1)
    return movement.masked_fill(bent[:, None, None], float("nan"))
