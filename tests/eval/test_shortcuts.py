"""Scenes whose cues agree or not, and the classifier that has to choose one."""

import itertools

import pytest
import torch
from measuring import changed, evaluate
from tiny import resident
from torch import nn
from torch.nn import functional as F

from selfsup.data.base import Splits
from selfsup.data.cues import COLOURS, CUES, PLACES, draw_cues, equal_cues, opposed_cues
from selfsup.errors import UserError
from selfsup.eval import eval_config
from selfsup.types import Normalization

CONFIG = eval_config(batch_size=64, shortcuts={"images": 192}, figures=False, cache=False)
PLAIN = Normalization((0.0,), (1.0,))


def splits(channels=3, size=32):
    data = resident(
        torch.zeros(4, channels, size, size, dtype=torch.uint8),
        torch.arange(4) % 2,
        name="nothing",
        image_size=size,
        normalization=PLAIN,
    )
    return Splits(data, data, data.subset(torch.arange(0)), data)


class Colour(nn.Module):
    """The saturated pixels' mean colour: nothing of shape, size or place."""

    in_channels = 3

    def forward(self, images):
        weight = (images.amax(1) - images.amin(1) > 0.3).float()[:, None]
        return (images * weight).sum((2, 3)) / weight.sum((2, 3)).clamp_min(1)


class Place(nn.Module):
    """Where the saturated pixels are, on a grid of two by two."""

    in_channels = 3

    def forward(self, images):
        weight = (images.amax(1) - images.amin(1) > 0.3).float()[:, None]
        shares = F.adaptive_avg_pool2d(weight, 2).flatten(1)
        return shares / shares.sum(1, keepdim=True).clamp_min(1e-6)


def values(records):
    return {(r["cue"], r.metric): r.value for r in records}


@pytest.mark.parametrize(("network", "seen"), [(Colour(), "colour"), (Place(), "place")])
def test_a_network_that_sees_one_cue_takes_it(network, seen):
    found = values(evaluate(network, splits(), CONFIG, ["shortcuts"]))
    assert set(found) == {(cue, metric) for cue in CUES for metric in ("preference", "recoverable")}
    assert found[seen, "preference"] > 0.95
    assert found[seen, "recoverable"] > 0.95
    assert sum(found[cue, "preference"] for cue in CUES) == pytest.approx(1)
    for cue in set(CUES) - {seen}:
        assert found[cue, "preference"] < 0.05
        # where no two cues agree, the one that is seen still excludes its own value: at most one in three is right
        assert found[cue, "recoverable"] < 0.45


def test_records_say_how_and_raw_pixels_are_judged_too(tmp_path):
    records = evaluate(None, splits(), changed(CONFIG, figures=True), ["shortcuts"], run_dir=tmp_path, seed=3)
    first = records[0]
    assert (first["images"], first["penalty"], first["dim"], first["seed"]) == (192, 0.01, 3072, 3)
    assert sum(r.value for r in records if r.metric == "preference") == pytest.approx(1)
    assert "shortcuts.png" in {path.name for path in (tmp_path / "figures").iterdir()}
    again = evaluate(None, splits(), CONFIG, ["shortcuts"], seed=3)
    assert values(again) == values(records)


def test_values_agree_or_oppose():
    equal, opposed = equal_cues(48), opposed_cues(48)
    assert (equal == equal[:, :1]).all()
    assert torch.bincount(equal[:, 0]).tolist() == [12] * 4
    assert all(len(set(row)) == 4 for row in opposed.tolist())
    for column in opposed.T:
        assert torch.bincount(column).tolist() == [12] * 4
    # of two cues every pair of unequal values comes equally often
    pairs = torch.bincount(4 * opposed[:, 0] + opposed[:, 3], minlength=16).view(4, 4)
    assert torch.equal(pairs, 4 * (1 - torch.eye(4, dtype=torch.long)))


def test_scenes_show_what_the_values_say():
    grid = torch.cartesian_prod(*[torch.arange(4)] * 4)
    images = draw_cues(grid, 0, 64).float() / 255
    assert images.shape == (256, 3, 64, 64)
    weight = (images.amax(1) - images.amin(1) > 0.3).float()
    area = weight.mean((1, 2))
    centres = (torch.arange(64) + 0.5) / 64
    x, y = ((weight * c).mean((1, 2)) / area for c in (centres, centres[:, None]))
    colour = (images * weight[:, None]).mean((2, 3)) / area[:, None]
    distance = torch.cdist(colour, torch.tensor(COLOURS))
    assert torch.equal(distance.argmin(1), grid[:, 1])
    middle = torch.cdist(torch.stack([x, y], 1), torch.tensor(PLACES))
    assert torch.equal(middle.argmin(1), grid[:, 3])
    for shape in range(4):  # for one shape the areas of the sizes do not overlap
        own = [area[(grid[:, 0] == shape) & (grid[:, 2] == size)] for size in range(4)]
        assert all(small.max() < large.min() for small, large in itertools.pairwise(own))
    assert torch.equal(draw_cues(grid[:5], 7, 64), draw_cues(grid[:9], 7, 64)[:5])
    assert not torch.equal(draw_cues(grid[:5], 7, 64), draw_cues(grid[:5], 8, 64))


def test_what_cannot_be_drawn_or_judged_is_a_sentence():
    with pytest.raises(UserError, match=r"data\.channels is 1"):
        evaluate(None, splits(channels=1), CONFIG, ["shortcuts"])

    class Constant(nn.Module):
        in_channels = 3

        def forward(self, images):
            return torch.ones(len(images), 4)

    with pytest.raises(UserError, match="collapsed"):
        evaluate(Constant(), splits(), CONFIG, ["shortcuts"])
