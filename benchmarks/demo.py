"""The demo: SimCLR and MoCo v2 trained on drawn images, evaluated and compared, with how long it still takes here.

  python benchmarks/demo.py [FOLDER]

Each part is a command that can be typed; it shows by itself how far it is.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from selfsup.engine.pace import in_words

QUICK = "--only diagnostics,knn,linear_probe,segmentation eval.linear_probe.epochs=30 eval.segmentation.epochs=5"

#: The parts, and about how many seconds each takes on two cores: the shares are what counts.
PARTS = (
    (20, "evaluate checkpoint=raw_pixels data=shapes run_dir={folder}/raw_pixels {quick}"),
    (33, "evaluate checkpoint=untrained data=shapes backbone=convnet run_dir={folder}/untrained {quick}"),
    (95, "train experiment=demo run_dir={folder}/simclr"),
    (33, "evaluate checkpoint={folder}/simclr {quick}"),
    (103, "train experiment=demo_moco run_dir={folder}/moco"),
    (33, "evaluate checkpoint={folder}/moco {quick}"),
    (13, "compare {folder}/raw_pixels {folder}/untrained {folder}/simclr {folder}/moco --out {folder}/comparison"),
)


def left(seconds: Sequence[float]) -> float:
    """Return how long the other parts will take, by what the first ones took."""
    shares = [share for share, _ in PARTS]
    done = len(seconds)
    return sum(seconds) / sum(shares[:done]) * sum(shares[done:])


def demo(folder: str, run: Callable[[list[str]], int]) -> int:
    """Run the parts one after another and return the exit code of the first that fails, or 0."""
    taken: list[float] = []
    for number, (_, command) in enumerate(PARTS, start=1):
        words = command.format(folder=shlex.quote(folder), quick=QUICK)
        when = f"about {in_words(left(taken))} left here" if taken else "after this one it is known how long it takes"
        print(f"\n[{number}/{len(PARTS)}, {when}] selfsup {words}", flush=True)
        start = time.monotonic()
        code = run([sys.executable, "-m", "selfsup.cli", *shlex.split(words)])
        if code:
            return code
        taken.append(time.monotonic() - start)
    print(f"\nThe demo took {in_words(sum(taken))}.")
    return 0


if __name__ == "__main__":
    name = sys.argv[1] if len(sys.argv) > 1 else f"runs/demo-{time.strftime('%Y%m%d-%H%M%S')}"
    sys.exit(demo(name, lambda command: subprocess.run(command, check=False).returncode))
