"""Methods: one file each. Importing this package registers all of them and names their classes here."""

from selfsup.methods.anchor import Anchor
from selfsup.methods.base import Method, MethodConfig
from selfsup.methods.parts import Parts
from selfsup.registry import import_files, methods

import_files(__name__, __path__)
# what registers itself in this folder is exported under its own name, so that a new file needs no line here
_classes = {c.__name__: c for name in methods for c in (methods[name].target, methods[name].config)}
globals().update({name: c for name, c in _classes.items() if c.__module__.startswith(f"{__name__}.")})

__all__ = ["Anchor", "Method", "MethodConfig", "Parts", *sorted(_classes)]
