"""One file a chart; those of an evaluation register themselves, and this folder is walked."""

from selfsup.registry import import_files

import_files(__name__, __path__)
