"""Readers of files that Pillow does not read truly: one file a format; each registers itself.

Which reader a file takes is told by its first bytes, as shards have no endings.
"""

from selfsup.registry import import_files

import_files(__name__, __path__)
