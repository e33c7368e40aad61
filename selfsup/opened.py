"""What a checkpoint string names, opened once: a run, a network from elsewhere, a file of weights or a baseline."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn

from selfsup.augment import build_views
from selfsup.checkpoint import INFO, digest_of, find_checkpoint, is_checkpoint, read_tensors, run_of, weights_of
from selfsup.config import from_values
from selfsup.errors import UserError
from selfsup.external import fit_weights, own_module, timm_network
from selfsup.imports import recall
from selfsup.methods import MethodConfig, Parts
from selfsup.methods.taught import TaughtConfig
from selfsup.nn import (
    Backbone,
    BackboneConfig,
    Teacher,
    adapt,
    build_backbone,
    merge,
    own_backbone,
    wrap_backbone,
)
from selfsup.registry import methods
from selfsup.settings.checkpoints import BASELINES, MODULE, OWN, TIMM, may_be_a_run
from selfsup.shortage import lacks_memory
from selfsup.types import ImageFacts, Normalization, Size, as_size


@dataclass
class Opened:
    """What a checkpoint string names.

    Attributes:
        name: The string.
        network: In evaluation mode, on the CPU; None for raw pixels.
        image_size: Side of the images it was trained on, or that it states; None where it says nothing.
        normalization: Statistics that its images were normalised with; None where it says nothing.
        run: Folder of the run that trained it; None for what was not trained here.
        epochs: For how many epochs it was trained here; 0 for untrained networks, None for those from elsewhere.
        config: Values of the run's configuration; None for what was not trained here.
        facts: What records say of a network from elsewhere: its name, and whether its weights are published ones.
        dim: Width of its features, once that is known.
        state: The weights of the whole method.
        membership: Digest of the images that it was trained on here and of the parts of the others; None where an
            earlier version wrote the checkpoint.
        start: What its training started from, where that were weights: ``name``, ``digest``, ``taken``, ``notes``.
        at_start: Whether these are those weights, before any step.
    """

    name: str
    network: nn.Module | None = None
    image_size: Size | None = None
    normalization: Normalization | None = None
    run: Path | None = None
    epochs: int | None = None
    config: dict[str, Any] | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    dim: int | None = None
    state: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    membership: str | None = None
    start: Mapping[str, Any] | None = None
    at_start: bool = False

    def normalize(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Let a network that has statistics use these in their place; others go on using those of the data."""
        if self.network is not None and self.normalization is not None:
            self.normalization = Normalization(tuple(mean), tuple(std))
            self.network.normalization = self.normalization  # type: ignore[assignment]

    def head(self) -> nn.Module | None:
        """Return the projection head that the method trained, in evaluation mode on the CPU.

        None for what was not trained here; and, with a warning, where the method has no ``head`` or is not known here,
        such as one from a user's file.
        """
        if self.config is None:
            return None
        try:
            config = from_values(self.config)
            assert isinstance(self.network, Backbone)
            assert self.normalization is not None
            views = build_views(config.augment, config.data.image_size, self.normalization)
            with torch.random.fork_rng([]):
                # a copy, as a method may change the network it is given
                given = copy.deepcopy(self.network), views, config.optimizer, config.batch_size
                teacher, _ = open_teacher(
                    config.method, self.network.in_channels, self.normalization, config.data.image_size
                )
                parts = Parts(*given, teacher=teacher)
                method = methods[config.method.name].target(config.method, parts)
            head = method.head
            if not isinstance(head, nn.Module):
                raise UserError(f"{type(method).__name__} has no head.")
            head.load_state_dict(weights_of(self.state, "head"))
        except Exception as error:  # the description comes from a file
            if lacks_memory(error):
                raise
            warnings.warn(f"The head cannot be built again, so its layers are left out: {error}", stacklevel=2)
            return None
        return head.eval()


def open_network(
    name: str | Path,
    backbone: BackboneConfig | None = None,
    *,
    images: ImageFacts | None = None,
    pretrained: bool = True,
    seed: int = 0,
) -> Opened:
    """Open what a checkpoint string names; a file is read once. Nothing is drawn from the global generators.

    Args:
        name: A run folder or a ``.ckpt``; ``timm:NAME``; ``module:FILE.py:NAME`` or ``module:PACKAGE.NAME``, an
            ``nn.Module`` that maps float ``[B,C,H,W]`` to ``[B,D]`` or a function without arguments that returns one; a
            file of weights (``.pth``, ``.pt``, ``.safetensors``, …), a state dict whose keys are timm's; ``untrained``;
            or ``raw_pixels``. Of weights, prefixes such as ``module.encoder_q.`` are taken off the keys and heads are
            left out. Files are read without executing anything; ``module:`` executes the code it names.
        backbone: The network of a file of weights, or of ``untrained``.
        images: What an ``untrained`` network will see: their channels and statistics are its own.
        pretrained: Of ``timm:``: the published weights, which timm fetches; False draws random ones.
        seed: Of random weights.

    Raises:
        UserError: No such network, file or attribute; a file that is damaged, incomplete or holds code; weights that
            cannot be fetched or do not fit the network; or an argument that the name needs is missing.
    """
    name = str(name)
    with isolate_rng(include_cuda=False):
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 a module of one's own may draw from any of them
        random.seed(seed)
        opened = _open(name, backbone, images, pretrained)
    if opened.network is not None:
        opened.network.eval()
    return opened


def _open(name: str, backbone: BackboneConfig | None, images: ImageFacts | None, pretrained: bool) -> Opened:
    if may_be_a_run(name):
        file = find_checkpoint(name)
        content = read_tensors(file)
        if is_checkpoint(content, file):
            return _run(name, file, content)
        if backbone is None:
            raise UserError(f"{name} holds weights and names no network; say which with backbone=….")
        network = fit_weights(content, file, backbone)
        return Opened(name, network, _stated_size(network), facts={"checkpoint": name})
    if name.startswith(TIMM):
        # grey images are repeated for a network of colours
        channels = images.channels if images is not None and images.channels not in (1, 3) else None
        found = timm_network(name.removeprefix(TIMM), pretrained, channels)
        facts = {"checkpoint": name, "pretrained": pretrained}
        facts |= {} if channels is None else {"in_channels": channels}
        return Opened(name, found, _stated_size(found), found.normalization, facts=facts)
    if name.startswith(MODULE):
        module = own_module(name)
        size, statistics = (getattr(module, key, None) for key in ("image_size", "normalization"))
        pair = isinstance(size, tuple | list) and len(size) == 2 and all(isinstance(side, int) for side in size)
        size = as_size(size) if size is not None and (pair or isinstance(size, int)) else None
        return Opened(name, module, size, statistics, facts={"checkpoint": name})
    if name == "raw_pixels":
        return Opened(name)
    if name == OWN:
        own = own_backbone()
        facts = {"checkpoint": f"{OWN}:{type(own.network).__name__}"}
        return Opened(name, own, normalization=own.normalization, facts=facts)
    if backbone is None or images is None:
        raise UserError("checkpoint: untrained needs a network and the images it will see: backbone=…, data=….")
    untrained = build_backbone(backbone, images.channels, images.normalization, [images.image_size])
    return Opened(name, untrained, epochs=0)


def _run(name: str, file: Path, content: dict[str, Any]) -> Opened:
    recall(run_of(file))  # its network may be one of the user's own
    info, state = content[INFO], content["state_dict"]
    normalization = Normalization(tuple(info["mean"]), tuple(info["std"]))
    try:
        config = BackboneConfig(**info["config"]["backbone"])
        sizes = info.get("image_sizes", ())  # earlier versions built all networks as timm has them
        network = build_backbone(config, info["in_channels"], normalization, sizes)
        if config.adapter_rank is not None:
            adapt(network, config.adapter_rank, config.adapter_alpha)
        network.load_state_dict(weights_of(state, info.get("backbone", "backbone")))
        merge(network)
    except Exception as error:  # a damaged description can fail anywhere
        if lacks_memory(error):
            raise
        reason = str(error).strip().splitlines()[-1].strip() if str(error).strip() else type(error).__name__
        raise UserError(f"{file}: the network that it describes cannot be built with its weights: {reason}") from error
    kept = info.get("membership")
    return Opened(
        name,
        network,
        as_size(info["config"]["data"]["image_size"]),
        normalization,
        run=run_of(file),
        epochs=int(info["epochs_done"]),
        config=info["config"],
        state=state,
        membership=kept.get("digest") if isinstance(kept, Mapping) else None,
        start=start if isinstance(start := info.get("start"), Mapping) else None,
        at_start=info.get("at_start") is True,
    )


def _stated_size(network: Backbone) -> Size | None:
    """Return the size of the images that a timm network is made for: where it takes no other, or had its weights."""
    facts = getattr(network.network, "pretrained_cfg", None) or {}
    known = network.normalization is not None or facts.get("fixed_input_size")
    return as_size(facts["input_size"][-2:]) if known and "input_size" in facts else None


def open_teacher(
    method: MethodConfig, channels: int, seen: Normalization, image_size: Size
) -> tuple[Teacher, dict[str, Any]] | tuple[None, None]:
    """Open the network that ``method.teacher`` names, and return it with what checkpoints keep of it.

    None twice for a method that has no teacher, or where none is named.

    Args:
        method: Settings of the method.
        channels: Of the images that it is to see.
        seen: Statistics that they are normalised with.
        image_size: Their side.

    Raises:
        UserError: As :func:`open_network` and :class:`~selfsup.nn.Teacher`, or what is named cannot teach.
    """
    if not isinstance(method, TaughtConfig) or method.teacher is None:
        return None, None
    name = method.teacher
    if name in (*BASELINES, OWN):
        raise UserError(f"method.teacher={name} has learnt nothing; name a run, a file, timm:NAME or module:….")
    try:
        opened = _open_weights(name, method.teacher_backbone)
        assert opened.network is not None
        network = opened.network
        backbone = network if isinstance(network, Backbone) else wrap_backbone(network, image_size)
    except UserError as error:
        raise UserError(
            f"method.teacher: {error} A teacher is opened again whenever a run begins or goes on; "
            "method.teacher_backbone=NAME says which network a file of weights is of."
        ) from error
    backbone.normalization = opened.normalization
    weights = sum(parameter.numel() for parameter in backbone.parameters())
    about = {"name": name, "digest": digest_of(backbone.network.state_dict()), "weights": weights}
    return Teacher(backbone, seen, channels), {**about, "normalized": opened.normalization is not None}


def _open_weights(name: str, network: str | None) -> Opened:
    """Open what is named; a file of weights is of a timm network, with either stem."""
    if network is None:
        return open_network(name)
    try:
        return open_network(name, BackboneConfig(network, small_stem=False))
    except UserError as error:
        try:
            return open_network(name, BackboneConfig(network, small_stem=True))
        except UserError:
            raise error from None


def load_backbone(path: str | Path) -> Backbone:
    """Return the trained backbone of a run folder or checkpoint, in evaluation mode on the CPU.

    Raises:
        UserError: As :func:`open_network`, or it was not trained here.
    """
    opened = open_network(path)
    if opened.run is None or not isinstance(opened.network, Backbone):
        raise UserError(f"{path} is not a run of selfsup; selfsup.open_network opens it.")
    return opened.network
