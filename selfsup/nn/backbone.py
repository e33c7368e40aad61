"""Backbones: any timm network by name, and narrow ResNets that train on a CPU."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, cast

import timm
import torch
from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from selfsup.errors import UserError
from selfsup.imports import hint
from selfsup.nn.recompute import in_chunks
from selfsup.settings import Section, setting
from selfsup.types import Normalization


@dataclass
class BackboneConfig(Section):
    """Which network is trained.

    Attributes:
        name: A timm model name, or one of the networks that ``width`` and ``blocks`` describe: ``resnet``, and
            ``convnet``, a plain stack of convolutions, which learns more than a ResNet in the first minutes.
        small_stem: ResNets only: 3×3 convolution and no max-pool in place of 7×7, stride 2 and max-pool.
        stem_stride: Stride of the small stem.
        width: Channels of the first stage; each later stage has twice as many as the one before.
        blocks: Basic blocks of each stage of ``resnet`` (four stages), convolutions of each stage of ``convnet``.
        zero_init_last: timm's ResNets and their like only: whether residual branches start at zero. The presets say
            no, as torchvision and the authors' codes do, since such branches learn late in short runs; None leaves it
            to timm. Networks without it draw their weights as they always do.
        kwargs: Further arguments of ``timm.create_model``. What depends on the size of the images (``img_size``,
            ``dynamic_img_size``) follows from ``data.image_size`` and ``augment.sizes`` unless it is given here.
        from_: The setting ``backbone.from``: weights that training starts from, named as for ``checkpoint``: a run, a
            file, ``timm:NAME``, ``module:…``. The network is that of the run, or timm's, unless ``backbone.name`` is
            given. None is random weights.

    Raises:
        UserError: ``kwargs.zero_init_last``, where it stood in earlier versions, contradicts ``zero_init_last``.
    """

    section: ClassVar[str] = "backbone"

    name: str = "resnet18"
    small_stem: bool = True
    stem_stride: int = setting(1, least=1)
    width: int = setting(64, least=1)
    blocks: list[int] = field(default_factory=lambda: [2, 2, 2, 2])
    zero_init_last: bool | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)
    from_: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if "zero_init_last" not in self.kwargs:
            return
        self.kwargs = dict(self.kwargs)
        said = self.kwargs.pop("zero_init_last")
        if self.zero_init_last not in (None, said):
            raise UserError(
                f"backbone.zero_init_last={self.zero_init_last} and backbone.kwargs.zero_init_last={said} contradict "
                "each other; leave the second out."
            )
        self.zero_init_last = said


class Backbone(nn.Module):
    """A network without its classifier.

    Attributes:
        network: The timm network. Its keys are timm's, for ResNets also torchvision's.
        dim: Width ``D`` of the pooled feature.
        in_channels: Channels of the images it takes.
        normalization: Statistics its training images were normalised with, or None when unknown.
        arguments: What ``timm.create_model`` was given to build it, beside the name and the channels.
        chunk_size: Most images that training holds activations of at a time, or None; see :meth:`save_memory`.
        recomputes: Whether the backward pass computes parts of the network again.
    """

    def __init__(
        self,
        network: nn.Module,
        in_channels: int,
        normalization: Normalization | None = None,
        dim: int | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        # some networks (MobileNetV3, VGG) have a layer between the map they pool and the feature
        self.dim = dim or int(cast(int, getattr(network, "head_hidden_size", network.num_features)))
        self.in_channels = in_channels
        self.normalization = normalization
        self.arguments: dict[str, Any] = {}
        self.chunk_size: int | None = None
        self.recomputes = False

    def save_memory(self, chunk_size: int | None = None, activation_checkpointing: bool = False) -> None:
        """Trade time for memory in training; whoever backpropagates wraps that in ``unchanged_statistics``.

        Args:
            chunk_size: Run so many images at a time, see :func:`~selfsup.nn.in_chunks`. None is all in one pass.
            activation_checkpointing: Keep the inputs of the network's blocks only, as its author chose them.

        Raises:
            UserError: A chunk of no images, or a network that does not know its blocks.
        """
        if chunk_size is not None and chunk_size < 1:
            raise UserError(f"trainer.chunk_size={chunk_size} must be at least 1; null is one pass of the whole batch.")
        if activation_checkpointing:
            try:
                self.network.set_grad_checkpointing(True)  # type: ignore[operator]
            except (AttributeError, AssertionError) as error:
                raise UserError(
                    "trainer.activation_checkpointing: this network has no blocks that could be computed again "
                    "(set_grad_checkpointing); leave it out, or set trainer.chunk_size."
                ) from error
        self.chunk_size = chunk_size
        self.recomputes = activation_checkpointing or chunk_size is not None

    def _run(self, function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        if self.chunk_size is None or not self.training:
            return function(images)
        return in_chunks(function, images, self.chunk_size, self.network)

    def forward(self, images: Tensor) -> Tensor:
        """Return pooled features: float ``[B,C,H,W]`` to ``[B,D]``."""
        return self._run(self.network, images)

    def forward_dense(self, images: Tensor) -> Tensor:
        """Return the feature map: float ``[B,C,H,W]`` to ``[B,D,S,S]``.

        Its spatial mean is ``forward`` for networks that pool by the mean. Networks with a hidden layer between the
        map and the pooled feature have ``network.num_features`` channels here instead of ``D``. Tokens of a
        transformer are laid out on their grid; class and register tokens are left out.
        """
        if not hasattr(self.network, "forward_features"):
            raise UserError(
                f"{type(self.network).__name__} gives features without a map, which this needs: give it a method "
                "forward_features that returns the map [B,D,S,S] (and num_features, D), or take a network of timm."
            )
        features = self._run(cast(Callable[[Tensor], Tensor], self.network.forward_features), images)
        if features.ndim == 4:
            width = self.network.num_features
            channels_last = features.shape[1] != width and features.shape[3] == width
            return features.permute(0, 3, 1, 2) if channels_last else features
        patches = features[:, int(getattr(self.network, "num_prefix_tokens", 0)) :]
        side = round(patches.shape[1] ** 0.5)
        if side * side != patches.shape[1]:
            raise ValueError(f"{patches.shape[1]} tokens do not lie on a square grid")
        return patches.transpose(1, 2).reshape(len(patches), -1, side, side)


class ConvNet(nn.Module):
    """3×3 convolutions, each with BatchNorm and ReLU; every stage after the first halves the side.

    Args:
        width: Channels of the first stage; they double from stage to stage.
        convolutions: Number of convolutions of each stage.
        in_channels: Channels of the images.
    """

    def __init__(self, width: int, convolutions: list[int], in_channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        self._checkpointing = False
        for stage, count in enumerate(convolutions):
            for position in range(count):
                wider = width * 2**stage
                stride = 2 if stage and position == 0 else 1
                layers += [nn.Conv2d(channels, wider, 3, stride, 1, bias=False), nn.BatchNorm2d(wider), nn.ReLU(True)]
                channels = wider
        self.layers = nn.Sequential(*layers)
        self.num_features = channels

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the last feature map ``[B,D,S,S]``."""
        if not self._checkpointing:
            return cast(Tensor, self.layers(images))
        for start in range(0, len(self.layers), 3):
            images = checkpoint(self.layers[start : start + 3], images, use_reentrant=False)
        return images

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only what convolutions take and compute the rest again, or not (timm's name for it)."""
        self._checkpointing = enable

    def forward(self, images: Tensor) -> Tensor:
        """Return its spatial mean ``[B,D]``."""
        return self.forward_features(images).mean(dim=(2, 3))


#: Name of the backbone that was given from Python as a module.
OWN = "own"
_given: list[Backbone] = []


def give_backbone(backbone: Backbone) -> None:
    """Let ``backbone.name=own`` stand for a network of this process from now on; copies of it are trained."""
    _given[:] = [copy.deepcopy(backbone)]


def own_backbone(in_channels: int | None = None, normalization: Normalization | None = None) -> Backbone:
    """Return a copy of the network that was given, for images of these channels and statistics where they are known.

    Raises:
        UserError: None was, or it takes images of other channels.
    """
    if not _given:
        raise UserError(
            "backbone.name=own is a network that was given from Python, which this process has not: give it to "
            "selfsup.train(backbone=…), or to Run.backbone(network)."
        )
    backbone = copy.deepcopy(_given[0])
    if in_channels not in (None, backbone.in_channels):
        raise UserError(
            f"backbone: the network takes images of {backbone.in_channels} channels and the data has {in_channels}."
        )
    backbone.normalization = normalization or backbone.normalization
    return backbone


def build_backbone(
    config: BackboneConfig,
    in_channels: int,
    normalization: Normalization | None = None,
    image_sizes: Sequence[int] = (),
) -> Backbone:
    """Build the network of a config, with random weights.

    A network that runs on images of ``image_sizes`` as timm has it is built as timm has it. One that is made for a
    single size is built for the largest, and takes the others where timm can (``dynamic_img_size``). None of this
    draws a random number.

    Args:
        config: Which network.
        in_channels: Channels of the images.
        normalization: Statistics of the images, which the network keeps.
        image_sizes: Sides of the images it will see; with none the network has the size that timm gives it.

    Raises:
        UserError: No such network, arguments or image sizes that it does not take, or a ``resnet`` without four stages.
    """
    from selfsup.registry import nearest

    if config.name == OWN:
        return own_backbone(in_channels, normalization)
    if config.name == "convnet":
        return Backbone(ConvNet(config.width, config.blocks, in_channels), in_channels, normalization)
    if config.name == "resnet":
        if len(config.blocks) != 4:
            raise UserError(
                f"backbone.blocks={config.blocks} must give the blocks of four stages, such as [1, 1, 1, 1]."
            )
        network: nn.Module = _narrow_resnet(config.width, config.blocks, in_channels)
        arguments: dict[str, Any] = {}
    else:
        if not timm.is_model(config.name):
            advice = hint() or nearest(config.name, timm.list_models())
            raise UserError(f"backbone.name: timm has no network '{config.name}'.{advice}")
        arguments = _arguments(config, in_channels, sorted(set(image_sizes)))
        try:
            network = _create(config, in_channels, arguments)
        except (TypeError, ValueError, AssertionError) as error:
            raise UserError(f"backbone.kwargs: '{config.name}' cannot be built with these settings: {error}") from error
    if config.small_stem and isinstance(network, ResNet):
        _shrink_stem(network, config.stem_stride)
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
        return {"small_stem", "stem_stride", "zero_init_last", "kwargs"}
    if config.name == "resnet":
        return idle | {"zero_init_last", "kwargs"}
    with torch.device("meta"):
        network = _create(replace(config, zero_init_last=None), 3, config.kwargs)
        if not isinstance(network, ResNet):
            idle |= {"small_stem", "stem_stride"}
        try:
            timm.create_model(config.name, zero_init_last=True, **config.kwargs)
        except TypeError:
            idle.add("zero_init_last")
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


def _arguments(config: BackboneConfig, in_channels: int, sizes: list[int]) -> dict[str, Any]:
    """Return ``config.kwargs`` and what must be added to them for images of these sizes."""
    given = config.kwargs
    failed = _try(config, in_channels, given, sizes) if sizes else None
    told = given if failed is None else {"img_size": sizes[-1], **given}
    dynamic = {"dynamic_img_size": True, **told}
    refused = _try(config, in_channels, dynamic, sizes)
    if refused is None:
        return dynamic
    if failed is None:
        return given
    if isinstance(refused, TypeError):  # timm's network has no such setting
        step = 1 if isinstance(failed, TypeError) else side_step(config, in_channels)
        refused = _try(config, in_channels, told, sizes)
        if refused is None and all(size % step == 0 for size in sizes):
            return told
    if isinstance(refused, TypeError):  # nor the other one
        refused = failed
    if isinstance(refused, TypeError):  # a mistake in backbone.kwargs, which building it shows
        return given
    raise UserError(_refusal(config, in_channels, sizes, failed if refused is None else refused)) from refused


def _try(config: BackboneConfig, in_channels: int, arguments: dict[str, Any], sizes: list[int]) -> Exception | None:
    """Return why the network cannot be built with these arguments, or run on these sizes. It takes no memory."""
    try:
        with torch.device("meta"):
            network = _create(config, in_channels, arguments).eval()
        if config.small_stem and isinstance(network, ResNet):
            with torch.device("meta"):
                _shrink_stem(network, config.stem_stride)
        with torch.no_grad():
            for size in sizes:
                network(torch.zeros(1, in_channels, size, size, device="meta"))
    except NotImplementedError:  # torch cannot run it without numbers, which says nothing about the sizes
        return None
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        return error
    return None


def _refusal(config: BackboneConfig, in_channels: int, sizes: list[int], error: Exception) -> str:
    """Say which size the network does not take, and one that it would."""
    step = side_step(config, in_channels)
    odd = next((size for size in sizes if size % step), None)
    if odd is not None:
        below, above = odd // step * step, (odd // step + 1) * step
        fitting = f"{below} or {above}" if below else f"{above}"
        padded = {"img_size": sizes[-1], **config.kwargs, "dynamic_img_size": True, "dynamic_img_pad": True}
        pad = "" if _try(config, in_channels, padded, sizes) else ", or backbone.kwargs.dynamic_img_pad=true to fill up"
        return (
            f"backbone.name={config.name} cuts images into patches of {step} pixels, which {odd} is no multiple of; "
            f"use {fitting} (data.image_size, augment.sizes){pad}."
        )
    several = f"sizes {', '.join(map(str, sizes))} together" if len(sizes) > 1 else f"images of {sizes[0]} pixels"
    own = int(timm.get_pretrained_cfg(config.name).input_size[-1])
    return (
        f"backbone.name={config.name} cannot take {several} ({_line(error)}); it is made for {own} (data.image_size, "
        "augment.sizes), and a network such as resnet50 takes any size."
    )


def _patch(network: nn.Module) -> int:
    """Return the side of the patches that a network cuts images into, or 1."""
    ratios = (getattr(module, "feat_ratio", None) for module in network.modules())  # timm's name for it
    return next((int(cast(Any, ratio)()) for ratio in ratios if callable(ratio)), 1)


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


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


def _narrow_resnet(width: int, blocks: list[int], in_channels: int) -> ResNet:
    channels = tuple(width * 2**stage for stage in range(len(blocks)))
    network = ResNet(
        BasicBlock, tuple(blocks), num_classes=0, in_chans=in_channels, channels=channels, zero_init_last=False
    )
    # timm fixes the stem at 64 channels; on a narrow network that would be most of the cost
    network.conv1 = nn.Conv2d(in_channels, width, 7, 2, 3, bias=False)
    network.bn1 = nn.BatchNorm2d(width)
    first = network.layer1[0]
    first.conv1 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
    first.downsample = None
    for module in (network.conv1, first.conv1):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network


def _shrink_stem(network: ResNet, stride: int) -> None:
    old = network.conv1
    if not isinstance(old, nn.Conv2d):
        return  # deep stems are three 3×3 convolutions already
    network.conv1 = nn.Conv2d(old.in_channels, old.out_channels, 3, stride, 1, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    network.maxpool = nn.Identity()
