"""How a step's throughput grows with the number of GPUs, and which message or product ends that: arithmetic, no GPU.

    python benchmarks/scaling.py --step-ms 150 --batch 256 [--methods simclr moco swav barlow_twins byol]
        [--gpus 1 8 64 512] [--intra-gb-s 300] [--inter-gb-s 25] [--latency-us 10] [--intra-latency-us 2]
        [--gpus-per-node 8] [--hops ring] [--hidden-share 0.5] [--tflops 50] [--memory-gb-s 2000]
        [--out benchmarks/results]

``--step-ms`` is a step of one GPU on its ``--batch`` images without others (``selfsup doctor`` prints it); each GPU
keeps that many. The other figures describe the machines: give your own. Sizes of networks, heads and messages are those
of the methods' ImageNet presets. ``messages`` holds the formulas of the sizes, which ``collectives.py`` compares with
what two processes send.

A ring of W ranks takes W-1 hops to pass everybody's b bytes on, over its slowest link: (W-1) b / rate plus the hops'
latencies. An all-reduce is two such passes of b/W bytes, or a tree. Only the gradients' reduction runs beside the
backward pass. The loss counts with what it costs beyond one GPU's. Writes scaling.json and .md to --out.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from measure import write
from torch import nn

from selfsup.config import TrainConfig, load_config
from selfsup.data import load_splits
from selfsup.engine.training import build_method
from selfsup.functional.redundancy import sums_send_less
from selfsup.methods import Method

FLOAT, LABEL = 4, 8  # bytes; in mixed precision MoCo's and DenseCL's shuffled keys and DINO's outputs are half as large
PURPOSES = ("gradients", "loss", "shuffle", "SyncBN")
#: Reads and writes of every element of the loss (see ``loss_work``), forward and backward, where each operation is a
#: kernel of its own, as without compilation.
TOUCHES = {
    "simclr": 20,
    "supcon": 35,
    "moco_v3": 14,
    "nnclr": 14,
    "barlow_twins": 38,
    "vicreg": 28,
    "wmse": 110,
}
MATRICES = {"barlow_twins": 1, "vicreg": 2}  # D × D products of the loss
#: How often a step runs each network forward; None is once for each size of views.
PASSES: dict[str, dict[str, int | None]] = {
    "barlow_twins": {"backbone": 2, "head": 2},
    "byol": {"backbone": 2, "projector": 2, "predictor": 2, "target": 2},
    "dino": {"backbone": None, "head": 1, "teacher": 1},
    "moco_v3": {"backbone": 2, "projector": 2, "predictor": 2, "key_encoder": 2},
    "nnclr": {"backbone": 2, "projector": 2, "predictor": 2},
    "pixcontrast": {"backbone": 2, "projector": 2, "key_encoder": 2},
    "pixpro": {"backbone": 2, "projector": 2, "instance_projector": 2, "instance_predictor": 2, "target": 2},
    "simclr": {"backbone": None, "head": 1},
    "simsiam": {"backbone": 2, "projector": 2, "predictor": 2},
    "supcon": {"backbone": None, "head": 1},
    "swav": {"backbone": None, "head": 1},
    "vicreg": {"backbone": 2, "head": 2},
    "wmse": {"backbone": 2, "head": 1},
}
#: The methods that there are formulas for; of another one the sum would leave out what its loss sends.
KNOWN = sorted({*PASSES, "moco", "moco_v1", "densecl"})
MACHINE_FIGURES = (
    *("intra_gb_s", "inter_gb_s", "latency_us", "intra_latency_us", "gpus_per_node"),
    *("hidden_share", "tflops", "memory_gb_s"),
)
FULL_QUEUE = "queue smaller than the batch"  # the method refuses it
MOMENTUM = ("target", "teacher", "key_encoder")  # no backward pass


@dataclass(frozen=True)
class Message:
    """A collective call of a step.

    Attributes:
        purpose: One of PURPOSES.
        kind: Name in torch.distributed.
        size: Bytes that one rank puts in: its part of a gather or of a scattered sum, all of a reduced tensor.
        backward: Whether it belongs to the backward pass.
    """

    purpose: str
    kind: str
    size: int
    backward: bool = False


@dataclass(frozen=True)
class Machines:
    """What connects the ranks: bytes a second and seconds a hop, within and between nodes."""

    intra_rate: float
    inter_rate: float
    intra_latency: float
    inter_latency: float
    per_node: int = 8
    hops: str = "ring"


def build(settings: Sequence[str]) -> tuple[TrainConfig, Method]:
    """Return a preset's configuration and its method without memory for the weights."""
    config = load_config(settings)
    images = ["data.train_size=20", "data.test_size=10", f"data.image_size={config.data.image_size}"]
    config = replace(config, data=load_config(["data=shapes", *images]).data)
    splits = load_splits(config.data)
    with torch.device("meta"):
        return config, build_method(config, splits)


def messages(config: TrainConfig, method: Method, images: int, ranks: int) -> list[Message]:
    """Return the collective calls of a step of each rank, which has ``images`` of its own, once queues are in use.

    The method is on the meta device. The sizes do not depend on the number of ranks, but for which of two ways Barlow
    Twins and VICReg take: what a rank receives does.
    """
    trainable = sum(p.numel() for p in method.parameters() if p.requires_grad)
    return [
        Message("gradients", "all_reduce", FLOAT * trainable, backward=True),
        *_of_loss(config, method, images, ranks),
        *(_of_batch_norm(config.method.name, method) if method.sync_batchnorm else []),
    ]


def _of_loss(config: TrainConfig, method: Method, images: int, ranks: int) -> list[Message]:
    settings: Any = config.method
    name, views = settings.name, len(method.views.sizes)
    embedding = FLOAT * images * getattr(settings, "output_dim", 0)

    def gather(size: int, backward: bool = True) -> list[Message]:
        there = Message("loss", "all_gather", size)
        return [there, Message("loss", "reduce_scatter", size, backward=True)] if backward else [there]

    def shuffle(size: int) -> Message:
        return Message("shuffle", "all_to_all_single", size)

    if name in MATRICES and sums_send_less(images, ranks, settings.output_dim, MATRICES[name]):
        row = FLOAT * settings.output_dim
        # the means, and in Barlow Twins the variances, of both views
        sizes = [row] * (4 if name == "barlow_twins" else 2) + MATRICES[name] * [row * settings.output_dim]
        return [Message("loss", "all_reduce", size, backward) for size in sizes for backward in (False, True)]
    if name in ("simclr", "barlow_twins", "vicreg") or (name == "wmse" and settings.scope == "world"):
        return gather(views * embedding)
    if name == "supcon":
        return [*gather(LABEL * images, False), *gather(views * embedding), *gather(FLOAT, False)]
    if name == "moco_v3":
        return 2 * gather(embedding, False)
    if name == "nnclr":
        return [*2 * gather(embedding), *gather(embedding, False)]
    picture = FLOAT * images * 3 * method.views.sizes[0] ** 2
    if name in ("moco", "moco_v1"):
        return (2 if settings.symmetric else 1) * [shuffle(picture), shuffle(embedding), *gather(embedding, False)]
    if name == "densecl":
        channels, *sides = _map_shape(method)
        cells = math.prod(sides)
        sizes = (picture, FLOAT * images * channels * cells, cells * embedding, embedding)
        return [*map(shuffle, sizes), *2 * gather(embedding, False)]
    if name == "swav":
        largest, use = Message("loss", "all_reduce", FLOAT), Message("loss", "all_reduce", FLOAT * settings.prototypes)
        queue = gather(embedding, False) if settings.queue_size else []
        return 2 * [largest, *settings.sinkhorn_iterations * [use], *queue]
    if name == "dino":
        return gather(FLOAT * settings.output_dim, False)
    return []


def _of_batch_norm(name: str, method: Method) -> list[Message]:
    """Return SyncBatchNorm's: mean, deviation and count forward, two sums backward, for each layer and pass."""
    found = []
    for part, passes in PASSES[name].items():
        count = len(set(method.views.sizes)) if passes is None else passes
        if name == "wmse" and part == "backbone":
            count = len(method.views.sizes)
        for module in getattr(method, part, nn.Module()).modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                channels = module.num_features
                found += count * [Message("SyncBN", "all_gather", FLOAT * (2 * channels + 1))]
                if part not in MOMENTUM:
                    found += count * [Message("SyncBN", "all_reduce", FLOAT * 2 * channels, backward=True)]
    return found


def _map_shape(method: Method) -> tuple[int, ...]:
    side = method.views.sizes[0]
    with torch.no_grad():
        features = method.backbone.forward_dense(torch.empty(16, 3, side, side, device="meta"))
    return tuple(features.shape[1:])


def loss_work(config: TrainConfig, method: Method, images: int, ranks: int) -> tuple[float, float]:
    """Return the operations, forward and backward, of the loss's products that grow with the ranks, and its elements.

    Elements are those of the logits, or of the gathered embeddings where correlations are taken. Both are of one rank.
    """
    settings: Any = config.method
    name, views, total = settings.name, len(method.views.sizes), images * ranks
    dim = getattr(settings, "output_dim", 0)
    if name in ("simclr", "supcon"):
        logits = views**2 * images * total
        return 6 * logits * dim, logits  # one product forward, two backward
    if name in ("moco_v3", "nnclr"):  # one side has no gradient
        logits = 2 * images * total
        return 4 * logits * dim, logits
    if name in MATRICES:
        here = images if sums_send_less(images, ranks, dim, MATRICES[name]) else total
        return 6 * MATRICES[name] * here * dim**2, 2 * here * dim
    if name == "wmse" and settings.scope == "world":
        elements = views * total * settings.iterations * dim
        return 9 * elements * dim, elements  # covariance and triangular solve
    return 0.0, 0.0


def seconds(kind: str, size: float, ranks: int, machines: Machines) -> float:
    """Return how long a collective of ``ranks`` takes whose every rank puts in ``size`` bytes."""
    if ranks == 1:
        return 0.0
    nodes = math.ceil(ranks / machines.per_node)
    local = min(ranks, machines.per_node)
    between = nodes > 1
    rate = min(machines.intra_rate, machines.inter_rate) if between else machines.intra_rate
    crossings = nodes - 1
    ring = (ranks - 1 - crossings) * machines.intra_latency + crossings * machines.inter_latency
    tree = math.ceil(math.log2(local)) * machines.intra_latency + math.ceil(math.log2(nodes)) * machines.inter_latency
    if kind == "all_reduce":
        return min(2 * ring + 2 * (ranks - 1) / ranks * size / rate, 2 * tree + 2 * size / rate)
    if kind == "all_to_all_single":  # each node's link carries what its ranks send to others
        inside = (local - 1) / ranks * size / machines.intra_rate
        outside = local * (ranks - local) / ranks * size / machines.inter_rate
        return ring + max(inside, outside)
    return (ring if machines.hops == "ring" else tree) + (ranks - 1) * size / rate


def predict(
    config: TrainConfig, method: Method, images: int, ranks: int, step: float, machines: Machines, options: Any
) -> dict[str, Any]:
    """Return a row of the table; ``step`` in seconds, options as on the command line."""
    cost = dict.fromkeys(PURPOSES, 0.0)
    for message in messages(config, method, images, ranks):
        cost[message.purpose] += seconds(message.kind, message.size, ranks, machines)
    seen = max(0.0, cost["gradients"] - options.hidden_share * step)

    def loss_seconds(count: int) -> float:
        operations, elements = loss_work(config, method, images, count)
        moved = FLOAT * elements * TOUCHES.get(config.method.name, 0)
        return operations / (1e12 * options.tflops) + moved / (1e9 * options.memory_gb_s)

    growth = loss_seconds(ranks) - loss_seconds(1)
    terms = {
        "gradients": seen,
        "gathers": cost["loss"],
        "shuffle": cost["shuffle"],
        "SyncBN": cost["SyncBN"],
        "loss": growth,
    }
    whole = step + sum(terms.values())
    worst = max(terms, key=lambda name: terms[name])
    most = worst if terms[worst] > 0 else None
    if 0 < getattr(config.method, "queue_size", 0) < images * ranks:
        most = FULL_QUEUE
    return {
        "method": config.method.name,
        "GPUs": ranks,
        "gradients, ms": 1e3 * cost["gradients"],
        "of it seen": 1e3 * seen,
        "gathers, ms": 1e3 * terms["gathers"],
        "shuffle, ms": 1e3 * terms["shuffle"],
        "SyncBN, ms": 1e3 * terms["SyncBN"],
        "loss, ms": 1e3 * growth,
        "loss, GB": FLOAT * loss_work(config, method, images, ranks)[1] / 1e9,
        "step, ms": 1e3 * whole,
        "images/s": round(images * ranks / whole),
        "efficiency": round(step / whole, 3),
        "limit": most,
    }


def stops_at(rows: Sequence[dict[str, Any]], efficiency: float) -> tuple[int | None, str | None]:
    """Return the first number of GPUs below an efficiency, or refused, and why, from rows of rising numbers."""
    stop = next((row for row in rows if row["efficiency"] < efficiency or row["limit"] == FULL_QUEUE), None)
    return (None, None) if stop is None else (stop["GPUs"], stop["limit"])


def add_machines(parser: argparse.ArgumentParser) -> None:
    """Add what describes the machines, with assumed figures: nodes of eight GPUs."""
    parser.add_argument("--intra-gb-s", type=float, default=300, help="a ring's GB/s within a node")
    parser.add_argument("--inter-gb-s", type=float, default=25, help="GB/s between nodes, a node's cards together")
    parser.add_argument("--latency-us", type=float, default=10, help="µs of a hop between nodes")
    parser.add_argument("--intra-latency-us", type=float, default=2, help="µs of a hop within a node")
    parser.add_argument("--gpus-per-node", type=int, default=8)
    parser.add_argument("--hops", choices=["ring", "log"], default="ring", help="of a gather: W-1, or log2 W")
    parser.add_argument("--hidden-share", type=float, default=0.5, help="of a step, beside which gradients are reduced")
    parser.add_argument("--tflops", type=float, default=50, help="of the loss's float32 products")
    parser.add_argument("--memory-gb-s", type=float, default=2000, help="of a GPU's memory")


def machines_of(options: argparse.Namespace) -> Machines:
    """Return the machines of the command line."""
    return Machines(
        1e9 * options.intra_gb_s,
        1e9 * options.inter_gb_s,
        1e-6 * options.intra_latency_us,
        1e-6 * options.latency_us,
        options.gpus_per_node,
        options.hops,
    )


def main() -> None:
    """Compute and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step-ms", type=float, required=True, help="a step of one GPU alone")
    parser.add_argument("--batch", type=int, required=True, help="images of each GPU")
    parser.add_argument(
        "--methods", nargs="+", choices=KNOWN, default=["simclr", "moco", "swav", "barlow_twins", "byol"]
    )
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 64, 512])
    parser.add_argument("--below", type=float, default=0.5, help="the efficiency at which scaling counts as stopped")
    add_machines(parser)
    parser.add_argument("--out", default="benchmarks/results")
    options = parser.parse_args()
    machines, step = machines_of(options), 1e-3 * options.step_ms
    rows, stops = [], []
    for name in options.methods:
        config, method = build([f"experiment=imagenet/{name}"])
        rows += [predict(config, method, options.batch, n, step, machines, options) for n in options.gpus]
        doubling = [predict(config, method, options.batch, 2**k, step, machines, options) for k in range(17)]
        count, term = stops_at(doubling, options.below)
        stops.append({"method": name, "stops at GPUs": count, "because of": term})
    protocol = (
        f"Computed, not run: a step of {options.step_ms:g} ms on one GPU with {options.batch} images, the same for all "
        "methods, and the machines "
        + ", ".join(f"{key} {value:g}" for key, value in vars(options).items() if key in MACHINE_FIGURES)
        + f", hops {options.hops}. Networks and heads of the ImageNet presets."
    )
    print(write(options.out, "scaling", rows, protocol))
    print(
        write(
            options.out,
            "scaling-stops",
            stops,
            f"{protocol} Powers of two up to 65,536 GPUs; stopped is below efficiency {options.below:g}.",
        )
    )


if __name__ == "__main__":
    main()
