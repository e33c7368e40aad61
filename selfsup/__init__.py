"""selfsup: learn visual representations without labels, and prove how good they are.

>>> import selfsup
>>> run = selfsup.train(selfsup.load_config(["method=moco", "data=fashion_mnist"]))
>>> selfsup.evaluate(selfsup.load_evaluate_config([f"checkpoint={run}"]))
>>> backbone = selfsup.load_backbone(run)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["augment", "eval", "evaluate", "functional", "load_backbone", "load_config", "load_evaluate_config", "train"]

if TYPE_CHECKING:
    from selfsup import augment, eval, functional
    from selfsup.checkpoint import load_backbone
    from selfsup.config import load_config
    from selfsup.evaluation import evaluate, load_evaluate_config
    from selfsup.training import train

_PLACES = {
    "evaluate": "selfsup.evaluation",
    "load_backbone": "selfsup.checkpoint",
    "load_config": "selfsup.config",
    "load_evaluate_config": "selfsup.evaluation",
    "train": "selfsup.training",
}


def __getattr__(name: str) -> Any:
    # torch and its friends take seconds to import; `selfsup --help` should not
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    if name in ("augment", "eval", "functional"):
        return import_module(f"selfsup.{name}")
    raise AttributeError(f"module 'selfsup' has no attribute '{name}'")
