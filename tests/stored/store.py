"""Store a small run of this version for the tests of later ones: ``python tests/stored/store.py NAME``.

Once for a release, and whenever ``selfsup.checkpoint.FORMAT`` is raised; a run that is stored already stays as it is.
``tests/test_stored.py`` opens, evaluates and resumes every folder that lies here.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
#: A momentum encoder, a queue, statistics of BatchNorm and the optimiser's momentum, in less than 200 kilobytes.
TRAINING = [
    "method=moco",
    "method.queue_size=48",
    "method.output_dim=8",
    "data=shapes",
    "data.train_size=72",
    "data.test_size=40",
    "backbone=resnet_tiny",
    "backbone.width=2",
    "batch_size=16",
    "trainer.max_epochs=1",
    "trainer.progress=false",
    "trainer.accelerator=cpu",
    "trainer.log_every_steps=1",
    "online.every_epochs=1",
    "run_dir=run",
]
KEPT = ("config.yaml", "metrics.csv", "times.csv", "results.json", "checkpoints/last.ckpt")


def store(name: str) -> None:
    """Train, evaluate, and keep what later versions have to read, without what is of this machine alone."""
    target = HERE / name
    if target.exists():
        sys.exit(f"{target} is there; a stored run stays as it is.")
    with tempfile.TemporaryDirectory() as folder:
        for words in (["train", *TRAINING], ["evaluate", "run", "--only", "knn", "eval.figures=false"]):
            subprocess.run([sys.executable, "-m", "selfsup.cli", *words], cwd=folder, check=True)
        run = Path(folder) / "run"
        features = [path.relative_to(run).as_posix() for path in sorted((run / "features").iterdir())]
        for file in (*KEPT, *features):
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(run / file, target / file)
        versions = json.loads((run / "environment.json").read_text("utf-8"))["versions"]
        (target / "environment.json").write_text(json.dumps({"versions": versions}, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    store(sys.argv[1])
