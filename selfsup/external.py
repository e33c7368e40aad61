"""Backbones from elsewhere: timm's networks, files of weights, and Python code of one's own."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from torch import Tensor, nn

from selfsup.errors import UserError, reason_of
from selfsup.nn import Backbone, BackboneConfig, any_size, build_backbone
from selfsup.registry import nearest
from selfsup.settings.checkpoints import MODULE, TIMM
from selfsup.shortage import lacks_memory
from selfsup.types import Normalization

#: Where published files keep the weights, the one to be used first: DINO publishes its teacher.
_STATES = ("state_dict", "model", "model_state", "teacher", "student")

#: First words of keys of what stands on a backbone or beside it, which evaluation has no use for.
_HEADS = frozenset(
    {
        "fc",
        "head",
        "heads",
        "head_dist",
        "classifier",
        "last_layer",
        "mlp",
        "predictor",
        "projector",
        "projection",
        "projection_head",
        "prototypes",
        "queue",
        "queue_ptr",
    }
)

#: Words that name the copy of the network that is not trained by gradients: the other one is judged.
_COPIES = ("encoder_k", "momentum", "target", "teacher", "ema", "key")


def timm_network(name: str, pretrained: bool, channels: int | None = None) -> Backbone:
    """Return a network of timm's by name, with its published weights or random ones, and timm's statistics for them.

    Args:
        name: timm's name.
        pretrained: Whether it has its published weights.
        channels: Of the images; None, or as many as timm has it with, is as timm has it. For others timm repeats the
            weights of the first layer over them, scaled by their numbers, and the network has no statistics.

    Raises:
        UserError: timm has no such network, or the weights cannot be fetched.
    """
    if name.startswith("local-dir:"):
        raise UserError(
            f"checkpoint: {TIMM}local-dir: is not opened, as files beside the weights could name others; give the file "
            "of weights and say its network: checkpoint=FOLDER/model.safetensors backbone.name=NAME."
        )
    if not name.startswith(("hf-hub:", "hf_hub:")) and not timm.is_model(name):
        raise UserError(f"checkpoint: timm has no network '{name}'.{nearest(name, timm.list_models())}")
    given = {} if channels is None else {"in_chans": channels}
    try:
        network = timm.create_model(name, pretrained=pretrained, num_classes=0, **any_size(name), **given)
    except Exception as error:  # the hub, its cache and the network each raise their own
        if lacks_memory(error):
            raise
        if not pretrained:
            raise UserError(f"checkpoint: timm cannot build '{name}': {reason_of(error)}") from error
        raise UserError(
            f"checkpoint: the weights of '{TIMM}{name}' could not be fetched ({reason_of(error)}); without network "
            f"they must lie in timm's cache, or as a file with checkpoint=FILE backbone.name={name.split('.')[0]}; "
            "pretrained=false takes random ones."
        ) from error
    facts: dict[str, Any] = network.pretrained_cfg
    own = int(facts["input_size"][0])
    if channels not in (None, own):
        return Backbone(network, int(str(channels)), None)
    return Backbone(network, own, Normalization(tuple(facts["mean"]), tuple(facts["std"])))


def own_module(checkpoint: str) -> nn.Module:
    """Return the module that ``module:FILE.py:NAME`` or ``module:PACKAGE.NAME`` names, executing its code.

    Raises:
        UserError: No such file, package or name, code that fails, or something that is no ``nn.Module``.
    """
    place = checkpoint.removeprefix(MODULE)
    if ".py:" in place:
        file, _, name = place.rpartition(":")
        path = Path(file)
        own_name = f"{MODULE}{path.absolute()}"  # one that hides no other module
        spec = importlib.util.spec_from_file_location(own_name, path) if path.is_file() else None
        if spec is None or spec.loader is None:
            raise UserError(f"checkpoint: there is no Python file {path}; write module:FILE.py:NAME.")
        module = importlib.util.module_from_spec(spec)
        sys.modules[own_name] = module  # dataclasses and pickling look their module up there
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            if lacks_memory(error):
                raise
            raise UserError(f"checkpoint: {path} cannot be executed: {type(error).__name__}: {error}") from error
    else:
        package, _, name = place.replace(":", ".").rpartition(".")
        try:
            module = importlib.import_module(package)
        except (ImportError, ValueError) as error:
            raise UserError(
                f"checkpoint: '{package}' cannot be imported ({reason_of(error)}); "
                "write module:PACKAGE.NAME, or module:FILE.py:NAME for a file."
            ) from error
    if not hasattr(module, name):
        raise UserError(f"checkpoint: {place} holds no '{name}'.{nearest(name, vars(module))}")
    made = getattr(module, name)
    if not isinstance(made, nn.Module):
        try:
            made = made()
        except Exception as error:
            if lacks_memory(error):
                raise
            raise UserError(f"checkpoint: calling {place} failed: {type(error).__name__}: {error}") from error
    if not isinstance(made, nn.Module):
        raise UserError(f"checkpoint: {place} gives a {type(made).__name__}; it must give a torch.nn.Module.")
    return made


def fit_weights(content: Any, path: Path, config: BackboneConfig) -> Backbone:
    """Return the network of a configuration with the weights of a file.

    Args:
        content: What the file holds.
        path: The file, for messages.
        config: The network.

    Raises:
        UserError: The file holds no weights, or others than the network's.
    """
    found = _state_of(content, path)
    backbone = build_backbone(config, 3)
    fitted = _fit(found, backbone.network.state_dict(), path)
    # the first convolution shows for how many channels the network was trained
    first = next((key for key, value in backbone.network.state_dict().items() if value.ndim == 4), None)
    if first is not None and first in fitted and fitted[first].ndim == 4 and fitted[first].shape[1] == 1:
        backbone = build_backbone(config, 1)
    expected = backbone.network.state_dict()
    for key, value in fitted.items():
        if value.shape != expected[key].shape:
            hint = " or backbone.small_stem=false" if config.small_stem and key == first else ""
            raise UserError(
                f"{path} does not fit backbone.name={config.name}: {key} is {list(value.shape)} in the file and "
                f"{list(expected[key].shape)} in the network; choose the network it was made with{hint}."
            )
    backbone.network.load_state_dict(expected | fitted)
    return backbone


def _state_of(content: Any, path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file of weights by name."""
    passed: set[int] = set()  # a file may hold itself
    while isinstance(content, Mapping) and id(content) not in passed:
        passed.add(id(content))
        inner = next((content[key] for key in _STATES if isinstance(content.get(key), Mapping)), None)
        content = content if inner is None else inner
    found = content.items() if isinstance(content, Mapping) else ()
    tensors = {key: value for key, value in found if isinstance(key, str) and isinstance(value, Tensor)}
    if not tensors:
        raise UserError(f"{path} holds no state dict, that is tensors by name; save one with torch.save.")
    return tensors


def _fit(found: dict[str, Tensor], expected: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Return the tensors of ``found`` under the keys of ``expected``: a prefix taken off, heads left out.

    Raises:
        UserError: Keys are missing or left over, or two networks in the file would fit.
    """
    counted: Counter[str] = Counter()
    for key in found:
        at = 0
        while at >= 0:  # every place after a dot may be where the network's own key begins
            if key[at:] in expected:
                counted[key[:at]] += 1
            at = key.find(".", at) + 1 or -1
    most = max(counted.values(), default=0)
    best = [prefix for prefix, count in counted.items() if count == most]
    if len(best) > 1:
        best = [p for p in best if not any(word in p for word in _COPIES)] or best
    if len(best) > 1:
        raise UserError(
            f"{path} holds several networks that fit, under {', '.join(sorted(map(repr, best)))}; "
            "save the state dict of the one to be judged alone."
        )
    prefix = best[0] if best else ""
    own = {key.removeprefix(prefix): value for key, value in found.items() if key.startswith(prefix)}
    # files from before torch 0.4.1 have no such counters, and evaluation does not read them
    missing = [key for key in expected if key not in own and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in own if key not in expected and key.partition(".")[0] not in _HEADS]
    if missing or unexpected:
        raise UserError(
            f"{path} does not fit the network: {_some('missing', missing)}, {_some('unexpected', unexpected)}"
            f"{f' (under the prefix {prefix!r})' if prefix else ''}; choose the network it was made with (backbone=…, "
            "backbone.name=…)."
        )
    return {key: own[key] for key in expected if key in own}


def _some(what: str, keys: list[str]) -> str:
    if not keys:
        return f"nothing {what}"
    return f"{len(keys)} keys {what} ({', '.join(keys[:3])}{', …' if len(keys) > 3 else ''})"
