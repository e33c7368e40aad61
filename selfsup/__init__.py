"""selfsup: learn visual representations without labels, and prove how good they are."""

__version__ = "0.1.0"
