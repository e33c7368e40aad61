"""Memory and time of a SimCLR step: one pass, in chunks (trainer.chunk_size), with activation checkpointing, with both.

    python benchmarks/memory.py [--batches 128 512 2048] [--chunk 64] [--out results]

Each case runs in a process of its own, on random images and the same network; the process makes the optimiser's step,
too. Writes memory.md and memory.json: on a CPU the growth of the process's peak memory over that before the first
step, on a GPU the peak of what torch allocated; and the median seconds of a step after the first.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from typing import Any

import torch
from measure import summary, synchronize, write

from selfsup.config import load_config
from selfsup.engine.environment import keep_memory
from selfsup.eval.results import peak_memory_mb
from selfsup.functional import nt_xent
from selfsup.nn import build_backbone, projection_head, unchanged_statistics


def step_once(backbone: Any, head: Any, optimizer: torch.optim.Optimizer, images: torch.Tensor) -> None:
    """Take a step on two views ``[2N,C,H,W]`` that are there already."""
    optimizer.zero_grad()
    loss = nt_xent(*head(backbone(images)).chunk(2), 0.1)
    with unchanged_statistics(backbone):
        loss.backward()
    optimizer.step()


def measure(case: dict[str, Any]) -> dict[str, float]:
    """Return the memory and the seconds of one case, from a process that has done nothing else."""
    torch.set_num_threads(case["threads"])
    if case["chunk"] is None and not case["checkpointing"]:
        keep_memory()  # as a training does that saves none
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = load_config(["method=simclr", f"backbone={case['backbone']}", f"data.image_size={case['size']}"])
    backbone = build_backbone(config.backbone, 3).to(device)
    backbone.to(memory_format=torch.channels_last)
    backbone.save_memory(case["chunk"], case["checkpointing"])
    head = projection_head([backbone.dim, backbone.dim, 128], bias=False, batch_norm=True, last_norm="scale").to(device)
    optimizer = torch.optim.SGD([*backbone.parameters(), *head.parameters()], 0.01, momentum=0.9)
    few = torch.randn(8, 3, case["size"], case["size"], device=device)
    step_once(backbone, head, optimizer, few)  # libraries, workspaces, the optimiser's state
    images = torch.randn(2 * case["batch"], 3, case["size"], case["size"], device=device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = 0.0
    else:
        before = peak_memory_mb()
    seconds = []
    for _ in range(1 + case["repeats"]):
        synchronize()
        start = time.perf_counter()
        step_once(backbone, head, optimizer, images)
        synchronize()
        seconds.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() / 1e6 if device.type == "cuda" else peak_memory_mb()
    return {"memory": peak - before, "seconds": summary(seconds[1:])[0]}


def main() -> None:
    """Measure every case and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[128, 512, 2048], help="images; a step has two views")
    parser.add_argument("--chunk", type=int, default=64)
    parser.add_argument("--backbone", default="resnet_narrow")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", default="results")
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(arguments.case)))
        return
    common = {name: getattr(arguments, name) for name in ("backbone", "size", "threads", "repeats")}
    ways = {
        "one pass": (None, False),
        "activation checkpointing": (None, True),
        f"chunks of {arguments.chunk}": (arguments.chunk, False),
        "both": (arguments.chunk, True),
    }
    rows = []
    for batch in arguments.batches:
        for way, (chunk, checkpointing) in ways.items():
            case = {**common, "batch": batch, "chunk": chunk, "checkpointing": checkpointing}
            command = [sys.executable, __file__, "--case", json.dumps(case)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:  # a GPU, or a machine, that is too small for the case
                print(done.stderr[-500:], file=sys.stderr)
                found: dict[str, float | None] = {"memory": None, "seconds": None}
            else:
                found = json.loads(done.stdout.splitlines()[-1])
            rows.append({"batch": batch, "way": way, "peak MB": found["memory"], "s a step": found["seconds"]})
            print(rows[-1], flush=True)
    protocol = (
        f"SimCLR's step (two views a step, {arguments.size} px, {arguments.backbone}, float32, SGD) on random images, "
        f"each case in a fresh process. Memory above that before the step on a CPU, all of torch's on a GPU. Median of "
        f"{arguments.repeats} steps after the first. Command: python benchmarks/memory.py --batches "
        f"{' '.join(map(str, arguments.batches))} --chunk {arguments.chunk} --backbone {arguments.backbone} --size "
        f"{arguments.size} --repeats {arguments.repeats}"
    )
    print(write(arguments.out, "memory", rows, protocol))


if __name__ == "__main__":
    main()
