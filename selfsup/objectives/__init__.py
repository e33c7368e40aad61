"""Objectives: what a contrastive method can minimise in place of its own loss, one file each, registered by name."""

from selfsup.objectives.base import Embeddings, Objective, ObjectiveConfig
from selfsup.registry import import_files, objectives

import_files(__name__, __path__)
# what registers itself in this folder is exported under its own name, so that a new file needs no line here
_classes = {c.__name__: c for name in objectives for c in (objectives[name].target, objectives[name].config)}
globals().update({name: c for name, c in _classes.items() if c.__module__.startswith(f"{__name__}.")})

__all__ = ["Embeddings", "Objective", "ObjectiveConfig", *sorted(_classes)]
