"""What a method is built from, and batches of loaders that are not ours."""

from __future__ import annotations

import dataclasses
from abc import ABCMeta
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from selfsup.augment import IMAGENET, AugmentConfig, ViewGenerator, build_views
from selfsup.distributed import world
from selfsup.errors import UserError
from selfsup.functional.collectives import size_of
from selfsup.negatives import NegativesConfig
from selfsup.nn import Backbone, Teacher, wrap_backbone
from selfsup.objectives import ObjectiveConfig
from selfsup.optimization import OptimizerConfig
from selfsup.registry import choice, methods, nearest
from selfsup.types import GREY, Batch, Normalization, Size


@dataclass
class Parts:
    """What a method is built from.

    Attributes:
        backbone: The network to train.
        views: Turns a batch into views on the training device.
        optimizer: Optimiser settings.
        batch_size: Images a step over all ranks.
        world_size: Number of ranks.
        seed: Seed of everything random in training.
        labelled: Whether the training images have labels.
        index: int64 ``[N]``, the stable index of each training image, for methods that keep something of each; None
            where the images are not known.
        teacher: The frozen network that ``method.teacher`` names, for methods that learn from one.
        objective: What is minimised in place of the method's own loss; None is that.
        negatives: What changes queries, keys and negatives before; None leaves them.
        total_steps: Optimiser steps of the whole training, where no trainer knows; what schedules are fractions of.
    """

    backbone: Backbone
    views: ViewGenerator
    optimizer: OptimizerConfig
    batch_size: int
    world_size: int = 1
    seed: int = 0
    labelled: bool = True
    total_steps: int = 1
    index: Tensor | None = None
    teacher: Teacher | None = None
    objective: ObjectiveConfig | None = None
    negatives: NegativesConfig | None = None


def parts_of(
    method: type[Any],
    backbone: nn.Module,
    *,
    name: str | None = None,
    image_size: Size = 224,
    views: ViewGenerator | None = None,
    batch_size: int = 256,
    seed: int = 0,
    total_steps: int | None = None,
    images: int | None = None,
    normalization: Normalization | None = None,
    optimizer: OptimizerConfig | Mapping[str, Any] | None = None,
    teacher: nn.Module | None = None,
    objective: ObjectiveConfig | None = None,
    negatives: NegativesConfig | None = None,
    **settings: Any,
) -> tuple[Any, Parts]:
    """Return what a method is built from, out of a network and settings by name.

    Args:
        method: A registered class.
        backbone: Maps float ``[B,C,H,W]`` to features ``[B,D]``; any module, see ``wrap_backbone``.
        name: Of a class that is registered under several (``MoCo``: ``moco``, ``moco_v1``).
        image_size: Side of the views in pixels, or (height, width).
        views: Makes the views; None is the method's own recipe at ``image_size``.
        batch_size: Images a step over all ranks.
        seed: Of the views and of all that is random in a step.
        total_steps: Optimiser steps of the training; schedules (of the momentum, say) are fractions of it. None leaves
            them at their start in a loop of one's own; a trainer knows by itself.
        images: How many images there are, whose ``index`` counts from 0; needed by methods that keep something of each.
        normalization: Statistics of images scaled to [0, 1]; None is the backbone's where it knows them, else
            ImageNet's, their mean for a network that takes grey images.
        optimizer: For training under a trainer; None is what comes with the method, a mapping changes some of that.
        teacher: The network that ``distill`` learns from, such as ``selfsup.open_network("runs/a").network``; it is
            frozen, and not copied.
        objective: What to minimise in place of the method's own loss: ``objectives.DCLConfig(temperature=0.2)``.
        negatives: What changes queries, keys and negatives before: ``negatives.MoCHiConfig()``.
        settings: The method's own, as ``selfsup methods NAME`` lists them.

    Raises:
        UserError: No such setting, or values that do not fit.
    """
    entry = methods.of(method, name)
    if teacher is not None and not isinstance(teacher, nn.Module):
        raise UserError(
            f"{method.__name__} takes a network as its teacher here; selfsup.open_network({str(teacher)!r}).network "
            "opens one by name."
        )
    try:
        config = entry.config(**settings)
    except TypeError as error:
        known = {f.name for f in dataclasses.fields(entry.config)} - {"name"}
        unknown = next((key for key in settings if key not in known), "")
        raise UserError(f"{method.__name__} has no setting '{unknown}'.{nearest(unknown, known)}") from error
    augment = choice("augment", entry.choices.get("augment", "simclr"), AugmentConfig)
    network = wrap_backbone(backbone, image_size)
    statistics = normalization or network.normalization or (GREY if network.in_channels == 1 else IMAGENET)
    own = choice("optimizer", entry.choices.get("optimizer", "sgd"), OptimizerConfig)
    if isinstance(optimizer, Mapping):
        own = dataclasses.replace(own, **optimizer)
    parts = Parts(
        network,
        build_views(augment, image_size, statistics) if views is None else views,
        optimizer if isinstance(optimizer, OptimizerConfig) else own,
        batch_size,
        size_of(world()),
        seed,
        total_steps=10**9 if total_steps is None else total_steps,
        index=None if images is None else torch.arange(images),
        teacher=None
        if teacher is None
        else Teacher(wrap_backbone(teacher, image_size), statistics, network.in_channels),
        objective=objective,
        negatives=negatives,
    )
    return config, parts


class BuiltFromBackbone(ABCMeta):
    """Lets a method be built from a network and settings by name, too: ``SimCLR(network, temperature=0.2)``."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if isinstance(kwargs.get("backbone", args[0] if args else None), nn.Module):
            return super().__call__(*parts_of(cls, *args, **kwargs))
        return super().__call__(*args, **kwargs)


def as_batch(batch: Any, number: int | None = 0) -> Batch:
    """Return the batch of anybody's loader as a ``Batch``.

    Args:
        batch: Images, uint8 or float in [0, 1], ``[B,C,H,W]``; a tuple or list (images, labels) or (images, labels,
            index); or a mapping with ``image``, and perhaps ``label`` and ``index``.
        number: Of the batch: without an index the images are numbered on from it. None asks for an index.

    Raises:
        UserError: It is something else, or has no index where there must be one.
    """
    keys = ("image", "label", "index")
    values = {"image": batch} if isinstance(batch, Tensor) else batch
    if isinstance(batch, list | tuple):
        values = dict(zip(keys, batch, strict=False))
    image = values.get("image") if isinstance(values, Mapping) else None
    if not isinstance(image, Tensor) or image.ndim != 4:
        raise UserError(
            "A batch must be images [B,C,H,W], (images, labels), or a mapping with the key 'image'; "
            f"this one is {type(batch).__name__}. Pictures become tensors by torchvision's PILToTensor."
        )
    label, index = values.get("label"), values.get("index")
    if index is None:
        if number is None:
            raise UserError("The method keeps something of each image; let the loader give (images, labels, index).")
        index = torch.arange(len(image)) + number * len(image)
    whole = isinstance(label, Tensor) and label.ndim == 1 and not label.is_floating_point()
    return Batch(image, label if whole else None, index.cpu())
