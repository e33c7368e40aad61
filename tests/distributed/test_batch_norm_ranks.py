"""Groups of ranks share BatchNorm statistics: which ranks a layer's messages reach.

torch runs SyncBatchNorm on GPUs only, so here the messages go through the process groups that its layers were given.
"""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from gloo import Ranks
from torch import nn

from selfsup.config import load_config
from selfsup.engine.devices import SharedBatchNorm, lightning
from selfsup.errors import UserError


@pytest.fixture(scope="module")
def four_ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    ranks = Ranks(4, tmp_path_factory.mktemp("four"))
    yield ranks
    ranks.stop()


def means(rank: int, ranks: int | None) -> list[float] | None:
    """Return the mean that each layer has of images that are all 2 to the power of the rank; None where none shares."""
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Sequential(nn.BatchNorm1d(2, affine=False)))
    network = SharedBatchNorm(ranks).apply(network)
    layers = [layer for layer in network.modules() if isinstance(layer, nn.SyncBatchNorm)]
    if not layers:
        return None
    found = []
    for layer in layers:
        total = torch.tensor([2.0**rank, 1.0])
        dist.all_reduce(total, group=layer.process_group)
        found.append(float(total[0] / total[1]))
    return found


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [
        (1, [None] * 4),
        (2, [[1.5, 1.5], [1.5, 1.5], [6.0, 6.0], [6.0, 6.0]]),
        (4, [[3.75, 3.75]] * 4),
        (8, [[3.75, 3.75]] * 4),  # fewer ranks than a group has
        (None, [[3.75, 3.75]] * 4),
    ],
)
def test_a_layer_reaches_the_ranks_of_its_group(
    ranks: int | None, expected: list[list[float] | None], four_ranks: Ranks
) -> None:
    assert four_ranks.run(means, ranks) == expected


FOUR = ["method=swav", "trainer.accelerator=cpu", "trainer.devices=4", "trainer.strategy=ddp"]


def test_the_trainer_has_the_groups_that_the_setting_asks_for() -> None:
    shared = lightning(load_config([*FOUR, "trainer.sync_batchnorm=true", "trainer.batchnorm_ranks=2"])).strategy
    assert isinstance(shared._layer_sync, SharedBatchNorm)
    assert shared._layer_sync.ranks == 2
    assert lightning(load_config([*FOUR, "trainer.sync_batchnorm=false"])).strategy._layer_sync is None
    assert load_config(["experiment=imagenet/swav", "data.root=."]).trainer.batchnorm_ranks == 8


def test_groups_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="batchnorm_ranks=3 does not divide the 4 ranks"):
        lightning(load_config([*FOUR, "trainer.sync_batchnorm=true", "trainer.batchnorm_ranks=3"]))
    lightning(load_config([*FOUR, "trainer.sync_batchnorm=false", "trainer.batchnorm_ranks=3"]))  # nothing is shared
