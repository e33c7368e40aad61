"""From the settings of a backbone to its network: what timm has by name, for the images that it will see."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import timm
import torch
from timm.models.resnet import ResNet
from torch import nn

from selfsup.errors import UserError, reason_of
from selfsup.imports import hint
from selfsup.nn.backbone import Backbone, BackboneConfig
from selfsup.nn.narrow import ConvNet, narrow_resnet
from selfsup.nn.tokens import fix_positions
from selfsup.nn.wrap import own_backbone
from selfsup.registry import nearest
from selfsup.settings.checkpoints import OWN
from selfsup.types import Normalization, Size, as_size, height_width, size_words


def build_backbone(
    config: BackboneConfig,
    in_channels: int,
    normalization: Normalization | None = None,
    image_sizes: Sequence[Size] = (),
) -> Backbone:
    """Build the network of a config, with random weights.

    A network that runs on images of ``image_sizes`` as timm has it is built as timm has it. One that is made for a
    single size is built for the largest, and takes the others where timm can (``dynamic_img_size``). None of this
    draws a random number.

    Args:
        config: Which network.
        in_channels: Channels of the images.
        normalization: Statistics of the images, which the network keeps.
        image_sizes: Sides of the images it will see, or (height, width); with none it has the size that timm gives it.

    Raises:
        UserError: No such network, arguments or image sizes that it does not take, a ``resnet`` without four stages, or
            positions to fix where there are none.
    """
    if config.name == OWN:
        return own_backbone(in_channels, normalization)
    if config.name == "convnet":
        return Backbone(ConvNet(config.width, config.blocks, in_channels), in_channels, normalization)
    if config.name == "resnet":
        if len(config.blocks) != 4:
            raise UserError(
                f"backbone.blocks={config.blocks} must give the blocks of four stages, such as [1, 1, 1, 1]."
            )
        network: nn.Module = narrow_resnet(config.width, config.blocks, in_channels)
        arguments: dict[str, Any] = {}
    else:
        if not timm.is_model(config.name):
            advice = hint() or nearest(config.name, timm.list_models())
            raise UserError(f"backbone.name: timm has no network '{config.name}'.{advice}")
        arguments = _arguments(config, in_channels, sorted(set(map(as_size, image_sizes)), key=height_width))
        try:
            network = _create(config, in_channels, arguments)
        except (TypeError, ValueError, AssertionError) as error:
            raise UserError(f"backbone.kwargs: '{config.name}' cannot be built with these settings: {error}") from error
    if config.small_stem and isinstance(network, ResNet):
        _shrink_stem(network, config.stem_stride)
    if config.fixed_positions:
        fix_positions(network)
    backbone = Backbone(network, in_channels, normalization)
    backbone.arguments = arguments
    return backbone


def side_step(config: BackboneConfig, in_channels: int) -> int:
    """Return what sides of images must be a multiple of: the side of a patch, or 1 for networks without patches."""
    if config.name in ("convnet", "resnet") or not timm.is_model(config.name):
        return 1
    try:
        with torch.device("meta"):
            return _patch(_create(config, in_channels, config.kwargs))
    except (TypeError, ValueError, AssertionError):  # build_backbone says what is wrong
        return 1


def idle_settings(config: BackboneConfig) -> set[str]:
    """Return the settings of a backbone that its network has no use for."""
    idle = set() if config.small_stem else {"stem_stride"}
    if config.name == "convnet":
        return {"small_stem", "stem_stride", "zero_init_last", "fixed_positions", "kwargs"}
    if config.name == "resnet":
        return idle | {"zero_init_last", "fixed_positions", "kwargs"}
    with torch.device("meta"):
        network = _create(replace(config, zero_init_last=None), 3, config.kwargs)
        if not isinstance(network, ResNet):
            idle |= {"small_stem", "stem_stride"}
        try:
            timm.create_model(config.name, zero_init_last=True, **config.kwargs)
        except TypeError:
            idle.add("zero_init_last")
        if not isinstance(getattr(network, "pos_embed", None), nn.Parameter):
            idle.add("fixed_positions")
    return idle | {"width", "blocks"}


def any_size(name: str) -> dict[str, Any]:
    """Return the arguments with which timm's network of this name takes images of several sizes, if there are any."""
    dynamic = {"dynamic_img_size": True}
    refused = _try(BackboneConfig(name), 3, dynamic, []) if timm.is_model(name) else TypeError()
    return {} if refused else dynamic


def _create(config: BackboneConfig, in_channels: int, arguments: dict[str, Any]) -> nn.Module:
    _refuse_files(arguments)
    given = {"num_classes": 0, "in_chans": in_channels, **arguments}
    if config.zero_init_last is not None:
        with contextlib.suppress(TypeError):  # a network that has no such thing, or a mistake that shows again below
            return cast(nn.Module, timm.create_model(config.name, zero_init_last=config.zero_init_last, **given))
    return cast(nn.Module, timm.create_model(config.name, **given))


def _arguments(config: BackboneConfig, in_channels: int, sizes: list[Size]) -> dict[str, Any]:
    """Return ``config.kwargs`` and what must be added to them for images of these sizes."""
    given = config.kwargs
    failed = _try(config, in_channels, given, sizes) if sizes else None
    sized = given if failed is None else {"img_size": sizes[-1], **given}
    dynamic = {"dynamic_img_size": True, **sized}
    refused = _try(config, in_channels, dynamic, sizes)
    if refused is None:
        return dynamic
    if failed is None:
        return given
    if isinstance(refused, TypeError):  # timm's network has no such setting
        step = 1 if isinstance(failed, TypeError) else side_step(config, in_channels)
        refused = _try(config, in_channels, sized, sizes)
        if refused is None and _odd_side(sizes, step) is None:
            return sized
    if isinstance(refused, TypeError):  # nor the other one
        refused = failed
    if isinstance(refused, TypeError):  # a mistake in backbone.kwargs, which building it shows
        return given
    raise UserError(_refusal(config, in_channels, sizes, failed if refused is None else refused)) from refused


def _try(config: BackboneConfig, in_channels: int, arguments: dict[str, Any], sizes: list[Size]) -> Exception | None:
    """Return why the network cannot be built with these arguments, or run on these sizes. It takes no memory."""
    try:
        with torch.device("meta"):
            network = _create(config, in_channels, arguments).eval()
        if config.small_stem and isinstance(network, ResNet):
            with torch.device("meta"):
                _shrink_stem(network, config.stem_stride)
        with torch.no_grad():
            for size in sizes:
                network(torch.zeros(1, in_channels, *height_width(size), device="meta"))
    except NotImplementedError:  # torch cannot run it without numbers, which says nothing about the sizes
        return None
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        return error
    return None


def _refusal(config: BackboneConfig, in_channels: int, sizes: list[Size], error: Exception) -> str:
    """Say which size the network does not take, and one that it would."""
    step = side_step(config, in_channels)
    odd = _odd_side(sizes, step)
    if odd is not None:
        below, above = odd // step * step, (odd // step + 1) * step
        fitting = f"{below} or {above}" if below else f"{above}"
        padded = {"img_size": sizes[-1], **config.kwargs, "dynamic_img_size": True, "dynamic_img_pad": True}
        pad = "" if _try(config, in_channels, padded, sizes) else ", or backbone.kwargs.dynamic_img_pad=true to fill up"
        return (
            f"backbone.name={config.name} cuts images into patches of {step} pixels, of which {odd} is not a multiple; "
            f"use {fitting} (data.image_size, augment.sizes){pad}."
        )
    words = ", ".join(map(size_words, sizes))
    several = f"sizes {words} together" if len(sizes) > 1 else f"images of {words} pixels"
    own = int(timm.get_pretrained_cfg(config.name).input_size[-1])
    return (
        f"backbone.name={config.name} cannot take {several} ({reason_of(error)}); it is made for {own} "
        "(data.image_size, augment.sizes), and a network such as resnet50 takes any size."
    )


def _odd_side(sizes: Sequence[Size], step: int) -> int | None:
    """Return the first side that is no multiple of ``step``, or None."""
    return next((side for size in sizes for side in height_width(size) if side % step), None)


def _patch(network: nn.Module) -> int:
    """Return the side of the patches that a network cuts images into, or 1."""
    ratios = (getattr(module, "feat_ratio", None) for module in network.modules())  # timm's name for it
    return next((int(cast(Any, ratio)()) for ratio in ratios if callable(ratio)), 1)


def _refuse_files(arguments: dict[str, Any]) -> None:
    """Refuse arguments that would make timm fetch or open files: a configuration may come with a stranger's checkpoint.

    Raises:
        UserError: There is one.
    """
    for name in arguments:
        if name.startswith("pretrained") or name in ("checkpoint_path", "cache_dir"):
            raise UserError(
                f"backbone.kwargs.{name} is not taken, as it names weights or a file; checkpoint=timm:NAME and "
                "checkpoint=FILE open these."
            )


def _shrink_stem(network: ResNet, stride: int) -> None:
    old = network.conv1
    if not isinstance(old, nn.Conv2d):
        return  # deep stems are three 3×3 convolutions already
    network.conv1 = nn.Conv2d(old.in_channels, old.out_channels, 3, stride, 1, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    network.maxpool = nn.Identity()
