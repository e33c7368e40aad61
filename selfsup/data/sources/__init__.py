"""Where images come from: one file a source. Importing this package registers every one of them."""

from selfsup.registry import import_files

import_files(__name__, __path__)
