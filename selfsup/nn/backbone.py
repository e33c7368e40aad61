"""What a backbone is: a network without its classifier, and the settings that say which one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from selfsup.distributed import world
from selfsup.errors import UserError
from selfsup.nn.recompute import Outputs, in_chunks
from selfsup.nn.tokens import Seams, Tokens, check_tokens, sequences
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
        zero_init_last: timm's ResNets and their like only: whether residual branches start at zero, by the scale of
            their last BatchNorm. ``backbone=resnet18`` and ``resnet50`` say no, as torchvision does, since such
            branches learn late in short runs; ``experiment=imagenet/NAME`` says yes for SimCLR, BYOL, SimSiam, Barlow
            Twins, VICReg and MoCo v3, as their authors do. None leaves it to timm. Networks without it draw their
            weights as they always do.
        fixed_positions: Vision transformers only: sines and cosines of row and column that stay as they are, in place
            of learned positions; zero at class token and registers. MAE, MoCo v3 and I-JEPA have them.
        subset_drop_path: Vision transformers only: share of the images of a batch that attention and perceptron of each
            block leave out in training, in place of timm's drop path, which runs them in vain. DINOv2 has it above 0.1.
        kwargs: Further arguments of ``timm.create_model``. What depends on the size of the images (``img_size``,
            ``dynamic_img_size``) follows from ``data.image_size`` and ``augment.sizes`` unless it is given here.
        from_: The setting ``backbone.from``: weights that training starts from, named as for ``checkpoint``: a run, a
            file, ``timm:NAME``, ``module:…``. The network is that of the run, or timm's, unless ``backbone.name`` is
            given. None is random weights.
        freeze_epochs: Epochs at the start in which heads learn and the whole backbone stays as it is.
        freeze: Layers and weights that always stay as they are, by their names in the network: ``conv1,bn1,layer1``,
            ``patch_embed,blocks.[0-5]``. A name stands for all below it; ``*``, ``?`` and ``[0-5]`` are wildcards.
            BatchNorm, dropout and drop path of a frozen layer run as in evaluation.
        anchor: Hold the features to those of the weights that training starts from: ``cosine``, image by image, or
            ``gram``, the similarities of the images of a batch.
        anchor_weight: Factor of the anchor beside the method's loss.
        adapter_rank: Train low-rank adapters (LoRA) of this rank in the linear layers of the network, such as a
            transformer's, and nothing else of it. Checkpoints open with the adapters added to the weights.
        adapter_alpha: α of the adapters, whose output is multiplied by α / rank; None is the rank.

    Raises:
        UserError: ``kwargs.zero_init_last``, where it stood in earlier versions, contradicts ``zero_init_last``; or
            ``freeze`` or ``adapter_alpha`` does nothing beside the others.
    """

    section: ClassVar[str] = "backbone"
    #: Settings that say how a network is trained, and not which one it is.
    of_training: ClassVar[frozenset[str]] = frozenset(
        (
            "subset_drop_path",
            "from_",
            "freeze_epochs",
            "freeze",
            "anchor",
            "anchor_weight",
            "adapter_rank",
            "adapter_alpha",
        )
    )

    name: str = "resnet18"
    small_stem: bool = True
    stem_stride: int = setting(1, least=1)
    width: int = setting(64, least=1)
    blocks: list[int] = field(default_factory=lambda: [2, 2, 2, 2])
    zero_init_last: bool | None = None
    fixed_positions: bool = False
    subset_drop_path: float = setting(0.0, least=0, below=1)
    kwargs: dict[str, Any] = field(default_factory=dict)
    from_: str | None = None
    freeze_epochs: int = setting(0, least=0)
    freeze: list[str] = field(default_factory=list)
    anchor: str | None = setting(None, choices=("cosine", "gram"))
    anchor_weight: float = setting(1.0, above=0)
    adapter_rank: int | None = setting(None, least=1)
    adapter_alpha: float | None = setting(None, above=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.freeze and self.adapter_rank is not None:
            raise UserError("backbone.freeze: backbone.adapter_rank freezes all of the network already; leave it out.")
        if self.adapter_alpha is not None and self.adapter_rank is None:
            raise UserError("backbone.adapter_alpha does nothing without backbone.adapter_rank; set both.")
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

    @property
    def network(self) -> BackboneConfig:
        """Which network it is, without how it is trained."""
        usual = {f.name: f for f in fields(self) if f.name not in self.of_training}
        return BackboneConfig(**{name: getattr(self, name) for name in usual})


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
        freeze_epochs: Epochs at the start of a training in which the backbone rests.
        resting: Whether it stays as it is for now: see :meth:`rest`.
        still: Names of the modules in it that always run as in evaluation, as their weights are frozen.
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
        self.freeze_epochs = 0
        self.resting = False
        self.still: tuple[str, ...] = ()

    def train(self, mode: bool = True) -> Backbone:
        """Set the mode as of any module; what is frozen, and all of a backbone that rests, runs as in evaluation."""
        super().train(mode)
        for name in ("",) if self.resting else self.still:
            self.network.get_submodule(name).eval()
        return self

    def rest(self, resting: bool) -> None:
        """Let the backbone stay as it is from now on, BatchNorm's running statistics too, or learn.

        Its gradients are dropped by whoever trains it; a single process does not even compute them.
        """
        if resting != self.resting:
            self.resting = resting
            self.train(self.training)

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

    def _run(self, function: Callable[..., Outputs], images: Tensor, *others: Tensor | None) -> Outputs:
        if self.resting and world() is None:  # DDP waits for every gradient that it was promised
            with torch.no_grad():
                return function(images, *others)
        if self.chunk_size is None or not self.training:
            return function(images, *others)
        return in_chunks(function, images, self.chunk_size, self.network, *others)

    def forward(self, images: Tensor) -> Tensor:
        """Return pooled features: float ``[B,C,H,W]`` to ``[B,D]``."""
        return self._run(cast(Callable[[Tensor], Tensor], self.network), images)

    def forward_tokens(
        self,
        images: Tensor,
        mask: Tensor | None = None,
        mask_token: Tensor | None = None,
        keep: Tensor | None = None,
        layers: Sequence[int] = (),
        normalize_layers: bool = True,
    ) -> Tokens:
        """Return the tokens of a vision transformer behind its final norm, prefix and patches apart.

        Without mask and keep they are those of timm's ``forward_features``. Patches are exchanged before positions are
        added, so that a mask token knows where it is, and left out after that. A Swin transformer takes a mask, and
        neither keep nor layers.

        Args:
            images: float ``[N,C,H,W]``.
            mask: bool ``[N,L]``, true where the mask token takes the place of a patch; row by row of the grid.
            mask_token: Of ``D`` numbers, see ``MaskToken``.
            keep: int64 ``[N,K]``, the patches that the network sees, in this order. None is all.
            layers: Blocks whose tokens are returned too, in this order; -1 is the last.
            normalize_layers: Whether these are behind the final norm as well.

        Raises:
            UserError: The network is no transformer whose tokens are known.
            ValueError: Mask, keep or layers of another type, shape or range.
        """
        network = check_tokens(self.network, windowed=keep is None and not layers)
        seams = Seams(mask_token, layers, normalize_layers)
        runs = self._run(partial(sequences, network, seams), images, mask, keep)
        count = getattr(network, "num_prefix_tokens", 0)
        last, *others = (Tokens(x[:, :count], x[:, count:]) for x in runs)
        return last._replace(layers=tuple(others))

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
        return self._laid_out(
            self._run(cast(Callable[[Tensor], Tensor], self.network.forward_features), images), images
        )

    def forward_both(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``forward`` and ``forward_dense``, after one pass where the network knows how (``forward_head``).

        Raises:
            UserError: As ``forward_dense``.
        """
        if not hasattr(self.network, "forward_features") or not hasattr(self.network, "forward_head"):
            return self.forward(images), self.forward_dense(images)
        pooled, features = self._run(self._pooled_and_features, images)
        return pooled, self._laid_out(features, images)

    def _pooled_and_features(self, images: Tensor) -> tuple[Tensor, ...]:
        network = cast(Any, self.network)
        features: Tensor = network.forward_features(images)
        return network.forward_head(features), features

    def _laid_out(self, features: Tensor, images: Tensor) -> Tensor:
        """Return what a network's ``forward_features`` gave for these images as a map."""
        if features.ndim == 4:
            width = self.network.num_features
            channels_last = features.shape[1] != width and features.shape[3] == width
            return features.permute(0, 3, 1, 2) if channels_last else features
        patches = features[:, int(getattr(self.network, "num_prefix_tokens", 0)) :]
        rows = columns = side = round(patches.shape[1] ** 0.5)
        if images.shape[-2] != images.shape[-1]:
            grid = getattr(getattr(self.network, "patch_embed", None), "dynamic_feat_size", None)
            rows, columns = (0, 0) if grid is None else grid((images.shape[-2], images.shape[-1]))
            if rows * columns != patches.shape[1]:
                raise UserError(
                    f"backbone: the {patches.shape[1]} tokens of an image of {images.shape[-2]}×{images.shape[-1]} "
                    "pixels have no known grid; set data.image_size to one side."
                )
        elif side * side != patches.shape[1]:
            raise ValueError(f"{patches.shape[1]} tokens do not lie on a square grid")
        return patches.transpose(1, 2).reshape(len(patches), -1, rows, columns)
