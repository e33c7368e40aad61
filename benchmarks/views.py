"""Two SimCLR views of a batch, made by us and by others, in turn, with the same operations and strengths.

    python benchmarks/views.py [--threads 2] [--sizes 32 96 224] [--out benchmarks/results]

Crop with scale 0.2 to 1, flip 0.5, jitter (0.4, 0.4, 0.4, 0.1) with probability 0.8, grey 0.2, blur 0.5 (at 96 and
224 px), normalise. Prints and saves a Markdown table: images a second, the median and the range of the repeats, and how
many times as fast we are. Imports, compilation and warm-up are not in it; the first call, which compiles, has a column.
With ``--keep-memory``, memory that is freed is kept for the next call, ours and a rival's, as our trainings keep it.
``--step`` also compares the views of 256 images at 224 px with a training step of a ResNet-50.

lightly, solo-learn and stable-pretraining are measured where they are installed. Of the last two one file is read, so
that ``pip install --no-deps`` does. Those and torchvision work image by image, in one thread, on a few images of the
batch: their rate does not depend on how many there are.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import kornia.augmentation as K
import measure
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.functional import to_pil_image

from selfsup.augment import AugmentConfig, build_views
from selfsup.engine.environment import keep_memory
from selfsup.types import Normalization

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
JITTER = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
SCALE = (0.2, 1.0)
BATCH = {32: 256, 96: 64, 224: 16}  # shrinks so that a repeat takes about as long
SINGLE = {32: 48, 96: 24, 224: 6}  # images for those that take one at a time
Views = Callable[[Tensor], object]


def blurs(size: int) -> bool:
    """Return whether the recipe has a blur at this size."""
    return size > 64


def window(size: int) -> int:
    """Return the side of the blur's window."""
    return max(3, size // 10 // 2 * 2 + 1)


def ours(size: int, compiled: bool) -> Views:
    """Return our generator of two views."""
    values: dict[str, Any] = {"scale": list(SCALE), "interpolation": "bilinear", "jitter_p": 0.8, "gray_p": 0.2}
    config = AugmentConfig(
        recipe="simclr",
        small=False,
        override={**values, **JITTER, "blur_p": 0.5 if blurs(size) else 0.0},
        compile=compiled,
    )
    views = build_views(config, size, Normalization(MEAN, STD))
    return lambda images: views(images)


def kornia_steps(size: int) -> list[torch.nn.Module]:
    """Return the recipe as Kornia has it."""
    steps = [
        K.RandomResizedCrop((size, size), scale=SCALE),
        K.RandomHorizontalFlip(),
        K.ColorJitter(*JITTER.values(), p=0.8),
        K.RandomGrayscale(p=0.2),
    ]
    if blurs(size):
        steps.append(K.RandomGaussianBlur((window(size),) * 2, (0.1, 2.0), p=0.5))
    return [*steps, K.Normalize(torch.tensor(MEAN), torch.tensor(STD))]


def kornia(size: int) -> Views:
    """Return two passes of Kornia's container."""
    sequence = K.AugmentationSequential(*kornia_steps(size), data_keys=["input"])
    return lambda images: [sequence(images.float() / 255) for _ in range(2)]


def kornia_compiled(size: int) -> Views:
    """Return Kornia's augmentations in a plain sequence, compiled."""
    sequence = torch.compile(torch.nn.Sequential(*kornia_steps(size)))
    return lambda images: [sequence(images.float() / 255) for _ in range(2)]


def stable_pretraining(size: int) -> Views:
    """Return the batched stage of stable-pretraining."""
    stage = one_file("stable_pretraining", "data/gpu_transforms.py")
    steps = [
        stage.GPURandomResizedCrop(size=(size, size), scale=SCALE),
        stage.GPURandomHorizontalFlip(p=0.5),
        stage.GPUColorJitter(**JITTER, p=0.8),
        stage.GPURandomGrayscale(p=0.2),
    ]
    if blurs(size):
        steps.append(stage.GPUGaussianBlur(kernel_size=(window(size),) * 2, sigma=(0.1, 2.0), p=0.5))
    both = stage.StackedMultiView(stage.GPUCompose([*steps, stage.GPUNormalize(MEAN, STD)]), n_views=2)
    return lambda images: both({"image": images.float() / 255})


def lightly(size: int) -> Views:
    """Return lightly's SimCLR transform, on PIL images."""
    from lightly.transforms import SimCLRTransform

    names = {"cj_bright": "brightness", "cj_contrast": "contrast", "cj_sat": "saturation", "cj_hue": "hue"}
    transform = SimCLRTransform(
        input_size=size,
        min_scale=SCALE[0],
        gaussian_blur=0.5 if blurs(size) else 0.0,
        **{theirs: JITTER[name] for theirs, name in names.items()},
    )
    return each_pil(size, transform)


def solo_learn(size: int) -> Views:
    """Return solo-learn's transform, on PIL images. Its crop is bicubic, which cannot be set."""
    file = one_file("solo", "utils/pretrain_dataloader.py")
    transform = file.ImagenetTransform(
        **JITTER, gaussian_prob=0.5 if blurs(size) else 0.0, min_scale=SCALE[0], crop_size=size
    )
    return each_pil(size, lambda image: [transform(image) for _ in range(2)])


def torchvision(size: int) -> Views:
    """Return torchvision's second version, on uint8 tensors, as its documentation advises."""
    steps = [
        v2.RandomResizedCrop(size, scale=SCALE, antialias=True),
        v2.RandomHorizontalFlip(),
        v2.RandomApply([v2.ColorJitter(**JITTER)], p=0.8),
        v2.RandomGrayscale(p=0.2),
    ]
    if blurs(size):
        steps.append(v2.RandomApply([v2.GaussianBlur(window(size), (0.1, 2.0))], p=0.5))
    transform = v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
    return lambda images: [transform(image) for image in images[: SINGLE[size]] for _ in range(2)]


def floor(size: int) -> Views:
    """Return the least that any views cost: copy and normalise."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return lambda images: [
        (images.float() / 255).sub_(mean.to(images.device)).div_(std.to(images.device)) for _ in range(2)
    ]


def each_pil(size: int, transform: Callable[[Any], object]) -> Views:
    """Return a transform of PIL images, which are made beforehand, in one thread."""
    ready: list[Any] = []

    def views(images: Tensor) -> object:
        if not ready:
            ready.extend(to_pil_image(image) for image in images[: SINGLE[size]].cpu())
        return [transform(image) for image in ready]

    return views


def one_file(package: str, path: str) -> ModuleType:
    """Return one file of an installed package as a module, without what the package imports elsewhere."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(f"No module named '{package}'")
    spec = importlib.util.spec_from_file_location(f"{package}_file", Path(found.submodule_search_locations[0]) / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RIVALS: dict[str, tuple[Callable[[int], Views], bool]] = {  # how to make it, and whether it takes one image at a time
    "ours, compiled": (partial(ours, compiled=True), False),
    "ours, eager": (partial(ours, compiled=False), False),
    "Kornia AugmentationSequential": (kornia, False),
    "Kornia, compiled": (kornia_compiled, False),
    "stable-pretraining's Kornia stage": (stable_pretraining, False),
    "lightly SimCLRTransform, one thread": (lightly, True),
    "solo-learn, one thread": (solo_learn, True),
    "torchvision v2, one thread": (torchvision, True),
    "copy and normalise (floor)": (floor, False),
}


def alone(views: Views, images: Tensor) -> object:
    """Run in one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return views(images)
    finally:
        torch.set_num_threads(threads)


def one_size(size: int, repeats: int, device: str, names: list[str]) -> list[dict[str, Any]]:
    """Return the table's rows for views of one size."""
    images = torch.randint(0, 256, (BATCH[size], 3, size, size), dtype=torch.uint8).to(device)
    runs: dict[str, Callable[[], object]] = {}
    first: dict[str, float] = {}
    for name in names:
        make, single = RIVALS[name]
        try:
            views = make(size)
            runs[name] = partial(alone, views, images) if single else partial(views, images)
            start = time.perf_counter()
            runs[name]()
            measure.synchronize()
            first[name] = time.perf_counter() - start
        except Exception as error:  # a rival that is not there or does not work here
            runs.pop(name, None)
            print(f"{size} px, {name}: skipped: {type(error).__name__}: {str(error).splitlines()[0]}", flush=True)
    seconds = measure.alternate(runs, repeats, warmup=2)
    rates = {
        name: measure.summary([(SINGLE if RIVALS[name][1] else BATCH)[size] / value for value in values])
        for name, values in seconds.items()
    }
    return [
        {
            "side": size,
            "views": name,
            "images/s": median,
            "range": f"{low:.0f} to {high:.0f}",
            **{
                f"times {mode}": rates[f"ours, {mode}"][0] / median
                for mode in ("compiled", "eager")
                if f"ours, {mode}" in rates
            },
            "first call, s": first[name],
        }
        for name, (median, low, high) in rates.items()
    ]


def step(repeats: int, device: str, count: int, side: int, names: list[str]) -> list[dict[str, Any]]:
    """Return the milliseconds of a ResNet-50's training step on so many images, and those of their views."""
    from torchvision.models import resnet50

    images = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, device=device)
    network = resnet50().to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)

    def train() -> None:
        for _ in range(2):  # one pass a view
            with torch.autocast(torch.device(device).type, torch.bfloat16):
                loss = network(prepared).float().logsumexp(dim=1).mean()
            loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    prepared = torch.rand(count, 3, side, side, device=device).to(memory_format=torch.channels_last)
    runs = {name: partial(RIVALS[name][0](side), images) for name in names if name.startswith("ours")}
    seconds = measure.alternate({"step": train, **runs}, repeats, warmup=3)
    medians = {name: measure.summary(values)[0] for name, values in seconds.items()}
    return [{"what": n, "ms": 1000 * s, "share of a step": s / medians["step"]} for n, s in medians.items()]


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(BATCH), choices=list(BATCH))
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", default="benchmarks/results")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--step", action="store_true", help="views against a ResNet-50's step")
    parser.add_argument("--step-images", type=int, default=256)
    parser.add_argument("--step-side", type=int, default=224)
    parser.add_argument("--keep-memory", action="store_true", help="as a training does, for rivals too")
    parser.add_argument("--without", nargs="*", default=[], help="rivals to leave out, by the start of their names")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.keep_memory:
        keep_memory()
    names = [name for name in RIVALS if not name.startswith(tuple(arguments.without))]
    protocol = (
        f"Two SimCLR views of a batch ({', '.join(f'{BATCH[size]} at {size} px' for size in arguments.sizes)}) on "
        f"{arguments.device}; images a second, median and range of {arguments.repeats} alternating repeats after "
        "2 that warm up. The first call holds compilation; with a warm cache on disk it is shorter."
        + " Freed memory is kept for the next call."
        * arguments.keep_memory
    )
    name = f"views-{arguments.threads}-threads" + "-kept" * arguments.keep_memory
    rows: list[dict[str, Any]] = []
    for size in arguments.sizes:  # each is written when it is there
        rows += one_size(size, arguments.repeats, arguments.device, names)
        table = measure.write(arguments.out, name, rows, protocol)
    print(table)
    if arguments.step:
        count, side = arguments.step_images, arguments.step_side
        protocol = (
            f"Two views of {count} images at {side} px against a ResNet-50's step on both (bfloat16, channels_last)."
        )
        rows = step(arguments.repeats, arguments.device, count, side, names)
        print(measure.write(arguments.out, "views-step", rows, protocol))


if __name__ == "__main__":
    main()
