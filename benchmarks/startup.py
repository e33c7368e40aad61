"""CPU seconds until a command answers, and until a training takes its first step; what is imported on the way.

  python benchmarks/startup.py [FOLDER]

FOLDER is for the run whose first step is waited for, and for a comparison of two empty ones; it is deleted again.
CPU seconds (user and system, of the process) change less than the clock on a machine that does other things too.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

LINES = (
    "--help",
    "methods",
    "trian",
    "train method=simclrr",
    "knn timm:resnet50",
    "compare {folder}/a {folder}/b",
    "train method=moco data=image_folder --help",
)
TRAINING = "experiment=demo data.limit=1500 run_dir={folder}/first"
#: Packages in the order in which a training imports them; each has what it needs that is not there yet.
PACKAGES = ("torch", "torchvision", "pytorch_lightning", "timm", "kornia", "selfsup.engine.training")

IMPORTS = """
import importlib, sys, time
before = time.process_time()
for name in {packages}:
    importlib.import_module(name)
    now = time.process_time()
    print(f"| import {{name}} | {{now - before:.2f}} |")
    before = now
"""
FIRST_STEP = """
import os, sys, time
from torch.optim.optimizer import register_optimizer_step_pre_hook
def stop(*_):
    print(f"| to the first step of a training | {time.process_time():.2f} |", file=sys.stdout, flush=True)
    os._exit(0)
register_optimizer_step_pre_hook(stop)
from selfsup.cli import main
main(["train", *sys.argv[1:]])
"""


def cpu_seconds(command: list[str]) -> float:
    """Run a command, whatever its exit code, and return the CPU seconds of it."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def measure(folder: Path) -> None:
    """Print a table of everything."""
    for name in "ab":
        (folder / name).mkdir()
        (folder / name / "config.yaml").write_text("seed: 0\n", "utf-8")
    print("| | CPU seconds |\n| --- | --- |")
    for line in LINES:
        words = line.format(folder=folder).split()
        least = min(cpu_seconds([sys.executable, "-m", "selfsup.cli", *words]) for _ in range(3))
        print(f"| `selfsup {line.format(folder='runs')}` | {least:.2f} |", flush=True)
    subprocess.run([sys.executable, "-c", IMPORTS.format(packages=PACKAGES)], check=True)
    words = TRAINING.format(folder=folder).split()
    done = subprocess.run([sys.executable, "-c", FIRST_STEP, *words], stdout=subprocess.PIPE, check=True, text=True)
    print("\n".join(line for line in done.stdout.splitlines() if line.startswith("|")))


if __name__ == "__main__":
    os.environ["TQDM_DISABLE"] = "1"
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as name:
        measure(Path(name))
