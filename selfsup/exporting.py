"""Take a trained backbone away: files that other programs read, each read back and compared before it counts."""

from __future__ import annotations

import importlib
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import timm
import torch
import torchvision
from timm.models.resnet import ResNet
from torch import Tensor, nn

from selfsup import __version__
from selfsup.errors import UserError
from selfsup.eval.results import FILE, read_results
from selfsup.nn import Backbone, BackboneConfig, build_backbone
from selfsup.opened import open_network
from selfsup.outputs import check_output
from selfsup.registry import nearest
from selfsup.types import Normalization

#: Largest difference of a feature from that of the backbone, as a fraction of the largest feature.
TOLERANCE = 1e-4

FILE_OF_WEIGHTS = "model.safetensors"

Features = Callable[[Tensor], Tensor]


class NormalizedBackbone(nn.Module):
    """A backbone that takes images as they are: float ``[B,C,H,W]`` in [0, 1], normalised inside, to ``[B,D]``.

    This is what the formats with a graph (ONNX, TorchScript, exported program) hold, so that nobody normalises twice
    or not at all.

    Args:
        backbone: The network.
        normalization: What its training images were normalised with.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: nn.Module, normalization: Normalization) -> None:
        super().__init__()
        self.backbone = backbone
        self.register_buffer("mean", torch.tensor(normalization.mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(normalization.std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Return pooled features of images in [0, 1]."""
        return cast(Tensor, self.backbone((images - self.mean) / self.std))


def export(checkpoint: str | Path, format: str, out: str | Path) -> tuple[Path, str]:
    """Write the backbone of a run in another program's format, read it back and compare its features.

    ``timm``, ``torchvision`` and ``detectron2`` are state dicts under the keys of those libraries, for normalised
    images. ``safetensors`` is a folder with ``model.safetensors`` and a model card, ``README.md``. ``onnx``,
    ``torchscript`` and ``exported`` hold the computation too: any number of images of the size the run evaluated at,
    in [0, 1], which they normalise.

    Args:
        checkpoint: A run folder or a checkpoint.
        format: One of ``selfsup.exporting.FORMATS``.
        out: File to write; for ``safetensors`` a folder. It must not exist.

    Returns:
        What was written, and the Python that loads it.

    Raises:
        UserError: No such format, a network that the format has no place for, a library that is missing, something at
            ``out`` already, or features that differ by more than 1e-4 of the largest.
    """
    if format not in FORMATS:
        raise UserError(f"--format: there is no '{format}'.{nearest(format, FORMATS)}")
    target = Path(out)
    if target.exists():
        raise UserError(f"--out: {target} exists and is not overwritten; choose another name.")
    run = _Run(checkpoint)
    check_output(target, "--out", sum(value.nbytes for value in run.state.values()))
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".exporting-") as folder:
        # the ending stays: some readers go by it
        draft = Path(folder) / target.name
        read_back, code = FORMATS[format](run, draft, target)
        _compare(run, read_back, f"{format} of {checkpoint}")
        os.replace(draft, target)
    return target, code


class _Run:
    """What a checkpoint says about its backbone."""

    def __init__(self, checkpoint: str | Path) -> None:
        opened = open_network(checkpoint)
        if opened.config is None or opened.run is None:
            raise UserError(f"{checkpoint} was not trained here; export writes the backbone of a run.")
        assert isinstance(opened.network, Backbone)
        assert opened.normalization is not None
        assert opened.image_size is not None
        self.opened, self.folder, self.settings = opened, opened.run, opened.config
        self.config = BackboneConfig(**opened.config["backbone"])
        self.backbone = opened.network
        self.channels = opened.network.in_channels
        self.normalization = opened.normalization
        self.image_size = opened.image_size

    @property
    def state(self) -> dict[str, Tensor]:
        """The weights of the network, contiguous, under timm's keys."""
        return {key: value.contiguous() for key, value in self.backbone.network.state_dict().items()}

    def with_normalization(self) -> NormalizedBackbone:
        """The network for images in [0, 1]."""
        return NormalizedBackbone(self.backbone, self.normalization).eval()

    def images(self, count: int) -> Tensor:
        """Noise in [0, 1] to compare features on: ``[count,C,S,S]``."""
        shape = (count, self.channels, self.image_size, self.image_size)
        return torch.rand(shape, generator=torch.Generator().manual_seed(count))

    def normalized(self, images: Tensor) -> Tensor:
        """Images in [0, 1] as the network takes them."""
        mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (self.normalization.mean, self.normalization.std))
        return (images - mean) / std

    def stem(self) -> list[str]:
        """Lines of Python that give a library's ResNet the stem of this one."""
        network = self.backbone.network
        if not isinstance(network, ResNet) or not isinstance(network.conv1, nn.Conv2d):
            return []
        first, lines = network.conv1, []
        if first.kernel_size != (7, 7) or first.in_channels != 3:
            size, stride, edge = first.kernel_size[0], first.stride[0], first.padding[0]
            lines.append(
                f"network.conv1 = torch.nn.Conv2d({first.in_channels}, {first.out_channels}, {size}, "
                f"stride={stride}, padding={edge}, bias=False)"
            )
        if isinstance(network.maxpool, nn.Identity):
            lines.append("network.maxpool = torch.nn.Identity()")
        return lines


def _compare(run: _Run, read_back: Features, what: str) -> None:
    # other numbers of images than the one a graph was traced with
    for count in (1, 3):
        images = run.images(count)
        with torch.inference_mode():
            expected, found = run.backbone(run.normalized(images)), read_back(images)
        if found.shape != expected.shape or not torch.isfinite(found).all():
            raise UserError(f"{what}: read back it gives {list(found.shape)} or no numbers; nothing was written.")
        difference = ((found - expected).abs().max() / expected.abs().max().clamp_min(1e-12)).item()
        if difference > TOLERANCE:
            raise UserError(f"{what}: read back its features differ by {difference:.1e}; nothing was written.")


def _timm(run: _Run, draft: Path, target: Path) -> tuple[Features, str]:
    if not timm.is_model(run.config.name):
        raise UserError(
            f"--format timm: '{run.config.name}' is a network of this toolkit that timm does not have; "
            "use --format safetensors, onnx or exported."
        )
    torch.save(run.state, draft)

    def code(path: Path) -> str:
        read = f"torch.load({str(path)!r}, weights_only=True)"
        return "\n".join(["import timm", "import torch", "", *_timm_network(run), *_filled(read)])

    return _execute(run, code(draft)), code(target)


def _torchvision(run: _Run, draft: Path, target: Path) -> tuple[Features, str]:
    name = run.config.name
    make = getattr(torchvision.models, name, None)
    refused = f"--format torchvision: torchvision has no ResNet like '{name}'"
    if not callable(make) or not isinstance(run.backbone.network, ResNet):
        raise UserError(f"{refused}; use --format timm, safetensors, onnx or exported.")
    if make(weights=None).state_dict().keys() - {"fc.weight", "fc.bias"} != run.state.keys():
        raise UserError(f"{refused} with backbone.kwargs={run.config.kwargs}; use --format timm.")
    torch.save(run.state, draft)

    def code(path: Path) -> str:
        network = [f"network = torchvision.models.{name}()", "network.fc = torch.nn.Identity()", *run.stem()]
        read = f"torch.load({str(path)!r}, weights_only=True)"
        return "\n".join(["import torch", "import torchvision", "", *network, *_filled(read)])

    return _execute(run, code(draft)), code(target)


def _safetensors(run: _Run, draft: Path, target: Path) -> tuple[Features, str]:
    from safetensors.torch import save_file

    draft.mkdir()
    about = {"format": "pt", "backbone": json.dumps(run.settings["backbone"]), "selfsup": __version__}
    save_file(run.state, draft / FILE_OF_WEIGHTS, about)

    def code(folder: Path) -> str:
        read = f"load_file({str(folder / FILE_OF_WEIGHTS)!r})"
        if timm.is_model(run.config.name):
            head = ["import timm", "import torch", "from safetensors.torch import load_file", ""]
            return "\n".join([*head, *_timm_network(run), *_filled(read)])
        usual = vars(BackboneConfig())
        settings = ", ".join(
            f"{key}={value!r}" for key, value in vars(run.config).items() if value != usual[key] and key != "from_"
        )
        head = ["from safetensors.torch import load_file", "from selfsup.nn import BackboneConfig, build_backbone", ""]
        network = f"network = build_backbone(BackboneConfig({settings}), {run.channels}).network"
        return "\n".join([*head, network, *_filled(read)])

    (draft / "README.md").write_text(model_card(run, code(Path())), "utf-8")
    return _execute(run, code(draft)), code(target)


def _timm_network(run: _Run) -> list[str]:
    # a dictionary, as the names in it come from a file and the lines are executed
    more = f", **{run.backbone.arguments!r}" if run.backbone.arguments else ""
    return [
        f"network = timm.create_model({run.config.name!r}, num_classes=0, in_chans={run.channels}{more})",
        *run.stem(),
    ]


def _filled(read: str) -> list[str]:
    return [f"network.load_state_dict({read})", "network.eval()"]


def _onnx(run: _Run, draft: Path, target: Path) -> tuple[Features, str]:
    _needs("onnx", "onnxscript")
    (runtime,) = _needs("onnxruntime")
    if sum(value.nbytes for value in run.state.values()) > 1.9e9:
        raise UserError("--format onnx: an ONNX file holds at most 2 GB; use --format exported.")
    with _quiet():
        torch.onnx.export(
            run.with_normalization(),
            (run.images(2),),
            draft,
            input_names=["images"],
            output_names=["features"],
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    session = runtime.InferenceSession(str(draft), providers=["CPUExecutionProvider"])

    def read_back(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])

    return read_back, (
        f"import onnxruntime\n\nsession = onnxruntime.InferenceSession({str(target)!r})\n"
        f"# images: float32 [B,{run.channels},{run.image_size},{run.image_size}] in [0, 1]\n"
        '(features,) = session.run(None, {"images": images})'
    )


def _torchscript(run: _Run, draft: Path, target: Path) -> tuple[Features, str]:
    with _quiet():
        script = cast(Any, torch.jit)  # has no types
        script.trace(run.with_normalization(), (run.images(2),)).save(str(draft))
        read_back: Features = script.load(str(draft))
    return read_back, f"import torch\n\nnetwork = torch.jit.load({str(target)!r})  # for images in [0, 1]"


def _exported(run: _Run, draft: Path, target: Path) -> tuple[Features, str]:
    _check_ending(target, ".pt2", "exported")
    with _quiet():
        program = torch.export.export(
            run.with_normalization(), (run.images(2),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)
        )
        torch.export.save(program, draft)
        read_back = torch.export.load(draft).module()
    return read_back, f"import torch\n\nnetwork = torch.export.load({str(target)!r}).module()  # for images in [0, 1]"


def _detectron2(run: _Run, draft: Path, target: Path) -> tuple[Features, str]:
    network = run.backbone.network
    if not isinstance(network, ResNet) or run.stem() or run.config.name not in ("resnet50", "resnet101", "resnet152"):
        raise UserError(
            f"--format detectron2: its ResNets are 50, 101 and 152 layers deep with the ImageNet stem, and this is "
            f"'{run.config.name}' with small_stem={str(run.config.small_stem).lower()}."
        )
    _check_ending(target, ".pth", "detectron2")
    content = {"model": to_detectron2(run.state), "__author__": "selfsup", "matching_heuristics": True}
    torch.save(content, draft)
    renamed = from_detectron2(torch.load(draft, weights_only=True)["model"])
    again = build_backbone(run.config, run.channels).eval()
    again.network.load_state_dict(again.network.state_dict() | renamed)
    mean, std = ([round(255 * v, 3) for v in values] for values in (run.normalization.mean, run.normalization.std))
    code = (
        f"# detectron2's settings for it; see docs/detectron2.md\nMODEL.WEIGHTS: {target}\nMODEL.PIXEL_MEAN: {mean}\n"
        f"MODEL.PIXEL_STD: {std}\nMODEL.RESNETS.STRIDE_IN_1X1: False\nINPUT.FORMAT: RGB"
    )
    return lambda images: again(run.normalized(images)), code


#: How each format is written: (run, file to write, its later name) to (what reading it back computes, how to load it).
FORMATS: dict[str, Callable[[_Run, Path, Path], tuple[Features, str]]] = {
    "timm": _timm,
    "torchvision": _torchvision,
    "safetensors": _safetensors,
    "onnx": _onnx,
    "torchscript": _torchscript,
    "exported": _exported,
    "detectron2": _detectron2,
}


def to_detectron2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a ResNet's state dict from torchvision's keys to detectron2's.

    ``conv1`` becomes ``stem.conv1``; ``layerN.B.convM`` becomes ``res(N+1).B.convM``; ``bnM`` becomes
    ``convM.norm``; ``downsample.0`` and ``.1`` become ``shortcut`` and ``shortcut.norm``. The classifier and
    BatchNorm's counters of batches, which detectron2 does not have, are left out.

    Raises:
        ValueError: A key that no ResNet has.
    """
    return {
        _detectron2_key(key): value
        for key, value in state.items()
        if not key.startswith("fc.") and not key.endswith("num_batches_tracked")
    }


def from_detectron2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a ResNet's state dict from detectron2's keys to torchvision's: the inverse of :func:`to_detectron2`."""
    renamed = {}
    for key, value in state.items():
        parts = key.split(".")
        place = [] if parts[0] == "stem" else [f"layer{int(parts[0].removeprefix('res')) - 1}", parts[1]]
        convolution, *rest = parts[1:] if parts[0] == "stem" else parts[2:]
        is_norm = rest[0] == "norm"
        if convolution == "shortcut":
            layer = f"downsample.{int(is_norm)}"
        else:
            layer = convolution.replace("conv", "bn") if is_norm else convolution
        renamed[".".join([*place, layer, rest[-1]])] = value
    return renamed


def _detectron2_key(key: str) -> str:
    *place, parameter = key.split(".")
    if place and place[0].startswith("layer") and len(place) > 2:
        before = [f"res{int(place[0].removeprefix('layer')) + 1}", place[1]]
        layer = ".".join(place[2:])
    else:
        before, layer = ["stem"], ".".join(place)
    names = {f"conv{n}": f"conv{n}" for n in (1, 2, 3)} | {f"bn{n}": f"conv{n}.norm" for n in (1, 2, 3)}
    names |= {"downsample.0": "shortcut", "downsample.1": "shortcut.norm"}
    if layer not in names:
        raise ValueError(f"'{key}' is no key of a ResNet with torchvision's names")
    return ".".join([*before, names[layer], parameter])


def model_card(run: _Run, code: str) -> str:
    """Return the Markdown that says what a run's backbone is, what was measured of it, and how to load it.

    Args:
        run: The run.
        code: Python that loads the weights.

    Raises:
        UserError: The run's ``results.json`` is broken.
    """
    config = run.settings
    data, method = config["data"], config["method"]
    facts = {
        "Method": method["name"] + _settings({k: v for k, v in method.items() if k != "name"}),
        "Data": f"{data['name']}, {data['image_size']} pixels" + (f", {data['limit']} images" if data["limit"] else ""),
        "Epochs": f"{run.opened.epochs}, {config['batch_size']} images a step, seed {config['seed']}",
        "Network": run.config.name + _settings({k: v for k, v in vars(run.config).items() if k != "name"}),
        "Features": f"{run.backbone.dim} numbers an image, averaged over the map where the network does so",
        "Input": f"{run.channels} channel(s), scaled to [0, 1], then (x - mean) / std",
        "Mean": str(list(run.normalization.mean)),
        "Standard deviation": str(list(run.normalization.std)),
    }
    lines = ["---", "library_name: selfsup", "tags: [self-supervised, image-feature-extraction]", "---", ""]
    lines += [f"# {run.config.name}, trained with {method['name']} on {data['name']}", ""]
    lines += ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts.items()), ""]
    lines += ["## Results", "", *_results(run), "", "## Load it", "", "```python", code, "```", ""]
    return "\n".join(lines)


def _results(run: _Run) -> Iterator[str]:
    records = read_results(run.folder) if (run.folder / FILE).exists() else []
    shown = [r for r in records if r["protocol"] != "training" and r.get("epoch") == run.opened.epochs]
    if not shown:
        yield "Not evaluated yet."
        return
    common = {"protocol", "metric", "value", "split", "seconds", "peak_memory_mb"}
    yield "| protocol | metric | value | on | details |"
    yield "|---|---|---|---|---|"
    for record in shown:
        details = {
            k: v for k, v in record.items() if k not in common and isinstance(v, str | int | float) and k != "epoch"
        }
        written = ", ".join(f"{key} {value}" for key, value in details.items())
        yield f"| {record['protocol']} | {record['metric']} | {record['value']:.4g} | {record['split']} | {written} |"


def _settings(values: Mapping[str, Any]) -> str:
    written = ", ".join(f"{key}={value}" for key, value in values.items() if value not in (None, {}, []))
    return f" ({written})" if written else ""


def _execute(run: _Run, code: str) -> Features:
    """Run the very lines that the user is told, so that they are known to work."""
    names: dict[str, Any] = {}
    exec(code, names)  # our own lines; what comes from the checkpoint stands in them as literals
    network: nn.Module = names["network"]
    return lambda images: cast(Tensor, network(run.normalized(images)))


def _needs(*names: str) -> list[ModuleType]:
    try:
        return [importlib.import_module(name) for name in names]
    except ImportError as error:
        raise UserError(
            f"--format onnx needs the package '{error.name}', which is missing; install the extra: "
            "pip install 'selfsup[export]'."
        ) from error


def _check_ending(target: Path, ending: str, format: str) -> None:
    if target.suffix != ending:
        raise UserError(f"--out: readers of --format {format} go by the ending; name it {target.stem}{ending}.")


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what the exporters say about themselves: that tracing is old, which pass they are in."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    before = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)
