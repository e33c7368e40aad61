"""Negatives: what becomes of queries, keys and a queue before they are contrasted, one file each, named in configs."""

from selfsup.negatives.base import Negatives, NegativesConfig
from selfsup.registry import import_files, negatives

import_files(__name__, __path__)
# what registers itself in this folder is exported under its own name, so that a new file needs no line here
_classes = {c.__name__: c for name in negatives for c in (negatives[name].target, negatives[name].config)}
globals().update({name: c for name, c in _classes.items() if c.__module__.startswith(f"{__name__}.")})

__all__ = ["Negatives", "NegativesConfig", *sorted(_classes)]
