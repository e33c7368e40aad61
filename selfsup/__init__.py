"""selfsup: learn visual representations without labels, and prove how good they are.

>>> import selfsup
>>> run = selfsup.train(method="moco", data="fashion_mnist")
>>> run.evaluate(["knn"])
>>> backbone = run.backbone()
"""

import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

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

_PLACES = {
    "compare": "selfsup.run",
    "embed": "selfsup.exporting",
    "evaluate": "selfsup.run",
    "export": "selfsup.exporting",
    "load_backbone": "selfsup.opened",
    "load_config": "selfsup.config",
    "load_evaluate_config": "selfsup.engine.evaluation",
    "open_network": "selfsup.opened",
    "read_embeddings": "selfsup.exporting",
    "runs": "selfsup.run",
    "Run": "selfsup.run",
    "train": "selfsup.run",
}


# tqdm says it in a notebook when other libraries import it; the bars here are text and need no widget
warnings.filterwarnings("ignore", message="IProgress not found")


def __getattr__(name: str) -> Any:
    # torch and its friends take seconds to import; `selfsup --help` should not
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    if name in ("augment", "data", "doctor", "eval", "functional", "methods", "nn", "report"):
        return import_module(f"selfsup.{name}")
    raise AttributeError(f"module 'selfsup' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
