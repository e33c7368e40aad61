"""One file a format; each registers itself, and this folder is walked."""

from selfsup.registry import import_files

import_files(__name__, __path__)
