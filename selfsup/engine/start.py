"""Where training starts that does not start from random weights: the weights that ``backbone.from`` names."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from selfsup.checkpoint import INFO, AtomicCheckpointIO, digest_of
from selfsup.data.membership import Membership
from selfsup.errors import UserError
from selfsup.external import fit_weights
from selfsup.methods import Method
from selfsup.nn import Backbone, BackboneConfig
from selfsup.opened import Opened, open_network
from selfsup.settings.checkpoints import BASELINES, TIMM
from selfsup.types import Normalization

#: In a run's folder: the weights that it started from, as a run of no epochs.
START = "start"


@dataclass(frozen=True)
class Start:
    """What a network started from.

    Attributes:
        name: What ``backbone.from`` said.
        digest: SHA-256 of the weights there, over names, shapes and values.
        taken: Tensors of the network that were taken from there.
        notes: Sentences on what was not taken, and what was changed on the way.
    """

    name: str
    digest: str
    taken: int
    notes: tuple[str, ...]


def start_from(backbone: Backbone, config: BackboneConfig) -> Start:
    """Give a network the weights that ``config.from_`` names; what does not fit stays as it was drawn.

    Position embeddings are interpolated to the network's image size, and the first convolution is adapted to its
    number of channels: the mean over the channels there, times their number, divided by the number here, so that grey
    images give what they gave.

    Raises:
        UserError: As :func:`~selfsup.opened.open_network`, or nothing fits.
    """
    name = str(config.from_)
    if name in BASELINES:
        raise UserError(f"backbone.from={name} has no weights to start from; name a run, a file or timm:NAME.")
    opened, source = _open(name, config.network)
    digest = digest_of(source.network.state_dict())
    notes = _resize(source.network, backbone.network)
    found, expected = source.network.state_dict(), backbone.network.state_dict()
    first = next((key for key, value in expected.items() if value.ndim == 4), None)
    taken: dict[str, Tensor] = {}
    misfits = []
    for key, here in expected.items():
        there = found.get(key)
        if there is None:
            continue
        if there.shape == here.shape:
            taken[key] = there
        elif key == first and there.ndim == 4 and _but_channels(there) == _but_channels(here):
            channels, wanted = there.shape[1], here.shape[1]
            taken[key] = there.mean(1, keepdim=True).mul(channels / wanted).expand_as(here).clone()
            notes.append(f"{key} is the mean over its {channels} channels there, for the {wanted} of these images")
        else:
            misfits.append(f"{key} ({_sides(there)} there, {_sides(here)} here)")
    if not any(key in taken for key, _ in backbone.network.named_parameters()):
        raise UserError(
            f"backbone.from={name}: none of its {len(found)} tensors fits backbone.name={config.name}; choose the "
            "network it was made with, or leave backbone.name out where it names its own."
        )
    missing = [key for key in expected if key not in found and not key.endswith("num_batches_tracked")]
    notes += _named(misfits, "of another shape, and left as drawn")
    notes += _named(missing, "not there, and left as drawn")
    notes += _named([key for key in found if key not in expected], "not used here, and left out")
    notes += _statistics(opened.normalization, backbone.normalization)
    backbone.network.load_state_dict(taken, strict=False)
    return Start(name, digest, len(taken), tuple(notes))


def start_lines(start: Mapping[str, Any] | None) -> list[str]:
    """Return what a run says of the weights that it starts from, by what its checkpoints keep of them."""
    if start is None:
        return []
    first = f"starts from {start['name']}: {start['taken']} tensors (SHA-256 {start['digest'][:12]})"
    return [first, *(f"note: backbone.from: {note}." for note in start["notes"])]


def save_start(method: Method, run_dir: Path, membership: Membership | None) -> None:
    """Keep the weights that a run starts from, as a run of no epochs in ``start`` in its folder.

    Args:
        method: Has not been trained yet.
        run_dir: The run's folder.
        membership: The images that it will be trained on: those that the evaluation of both leaves out.

    Raises:
        UserError: It cannot be written.
    """
    state = {f"backbone.{key}": value for key, value in method.backbone.state_dict().items()}
    about = {**method.checkpoint_info, "epochs_done": 0, "at_start": True, "backbone": "backbone"}
    folder = run_dir / START
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    AtomicCheckpointIO().save_checkpoint({"state_dict": state, INFO: about}, folder / "checkpoints" / "last.ckpt")
    if membership is not None:
        membership.save(folder)


def _open(name: str, config: BackboneConfig) -> tuple[Opened, Backbone]:
    """Open what is named; weights that say of no network which it is have that of ``config``, with either stem."""
    refusals = []
    for small_stem in (config.small_stem, not config.small_stem):
        settings = replace(config, small_stem=small_stem)
        try:
            opened = open_network(name, settings)
            if isinstance(opened.network, Backbone):
                return opened, opened.network
            assert opened.network is not None
            return opened, fit_weights(opened.network.state_dict(), Path(name), settings)
        except UserError as error:
            refusals.append(error)
            if name.startswith(TIMM):
                break  # it names its network
    raise refusals[0]


def _resize(source: nn.Module, target: nn.Module) -> list[str]:
    """Interpolate position embeddings and the like to the size that ``target`` is built for, where timm can."""
    there, here = (getattr(getattr(network, "patch_embed", None), "img_size", None) for network in (source, target))
    if there is None or here is None or there == here or not hasattr(source, "set_input_size"):
        return []
    before = {key: value.shape for key, value in source.state_dict().items()}
    with contextlib.suppress(RuntimeError, AssertionError, ValueError):  # then they are of another shape
        source.set_input_size(img_size=here)  # type: ignore[operator]
    changed = [key for key, value in source.state_dict().items() if before.get(key) != value.shape]
    return _named(changed, f"interpolated from images of {there[0]} pixels to {here[0]}")


def _named(keys: Sequence[str], what: str) -> list[str]:
    if not keys:
        return []
    shown = ", ".join(keys[:5]) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")
    return [f"{len(keys)} tensor{'s are' if len(keys) > 1 else ' is'} {what}: {shown}"]


def _statistics(there: Normalization | None, here: Normalization | None) -> list[str]:
    if there is None or here is None or there == here:
        return []
    mean, std = ("[" + ",".join(f"{v:.4g}" for v in values) + "]" for values in (there.mean, there.std))
    return [f"its images were normalised with data.mean={mean} data.std={std}"]


def _but_channels(weight: Tensor) -> tuple[int, ...]:
    return (weight.shape[0], *weight.shape[2:])


def _sides(value: Tensor) -> str:
    return "×".join(map(str, value.shape)) or "a number"
