"""selfsup: learn visual representations without labels, and prove how good they are.

>>> import selfsup
>>> run = selfsup.train(method="moco", data="fashion_mnist")
>>> run.evaluate(["knn"])
>>> backbone = run.backbone()
"""

import warnings
from typing import TYPE_CHECKING

from selfsup.offered import offered

__version__ = "0.1.0"
__all__ = [
    "Run",
    "augment",
    "compare",
    "data",
    "doctor",
    "embed",
    "eval",
    "evaluate",
    "export",
    "functional",
    "load_backbone",
    "load_config",
    "load_evaluate_config",
    "methods",
    "nn",
    "open_network",
    "read_embeddings",
    "report",
    "runs",
    "train",
]

if TYPE_CHECKING:
    from selfsup import augment, data, eval, functional, methods, nn, report
    from selfsup.config import load_config
    from selfsup.doctor import doctor
    from selfsup.engine.evaluation import load_evaluate_config
    from selfsup.exporting import embed, export, read_embeddings
    from selfsup.opened import load_backbone, open_network
    from selfsup.run import Run, compare, evaluate, runs, train
else:
    __getattr__, __dir__ = offered(__name__)

# tqdm says it in a notebook when other libraries import it; the bars here are text and need no widget
warnings.filterwarnings("ignore", message="IProgress not found")
