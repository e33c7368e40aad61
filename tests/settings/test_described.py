"""What the docstrings of dataclasses say of each setting."""

from __future__ import annotations

import dataclasses

from selfsup.settings import setting
from selfsup.settings.described import sentences, settings


@dataclasses.dataclass
class Base:
    """Something.

    Attributes:
        first: What it means, over
            two lines: with a colon.
        second, third: What both mean.

    Raises:
        fourth: Never.
    """

    first: int = 1
    second: int = 2
    third: int = 3


@dataclasses.dataclass
class Derived(Base):
    """Something more.

    Attributes:
        second: Another meaning.
        own: Its own.
    """

    own: list[int] = dataclasses.field(default_factory=lambda: [4])


def test_sentences_are_those_of_the_docstrings() -> None:
    assert sentences(Base) == {
        "first": "What it means, over two lines: with a colon.",
        "second": "What both mean.",
        "third": "What both mean.",
    }
    assert sentences(Derived) == sentences(Base) | {"second": "Another meaning.", "own": "Its own."}


@dataclasses.dataclass
class Ranged:
    """Something.

    Attributes:
        share: Of something.
    """

    share: float = setting(0.5, least=0, most=1)


def test_a_range_is_told() -> None:
    assert list(settings(Ranged(), "own")) == [("own.share", 0.5, "Of something. Allowed: at least 0 and at most 1.")]
