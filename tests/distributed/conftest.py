from collections.abc import Iterator

import pytest
from gloo import Ranks


@pytest.fixture(scope="session")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    """Two gloo processes that all tests share."""
    ranks = Ranks(2, tmp_path_factory.mktemp("gloo"))
    yield ranks
    ranks.stop()


@pytest.fixture(scope="session")
def four_ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    """Four of them."""
    ranks = Ranks(4, tmp_path_factory.mktemp("four"), timeout=240)
    yield ranks
    ranks.stop()
