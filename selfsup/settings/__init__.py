"""Settings: what they may be, how they are written, and what was meant where no such setting is there.

Methods, sources and protocols declare theirs with :func:`setting`. What takes long to import is imported by none of
this package's files but ``values`` and ``overrides``, so that help and typos are answered at once.
"""

from selfsup.settings.ranges import Range, Section, Sides, TextOrList, check, key_of, range_of, setting

__all__ = ["Range", "Section", "Sides", "TextOrList", "check", "key_of", "range_of", "setting"]
