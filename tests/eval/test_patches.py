"""Patch retrieval against a loop over every cell of every image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import resident
from torch import nn
from torch.nn import functional as F

from selfsup.errors import UserError
from selfsup.eval import Encoder, retrieve_patches
from selfsup.report import patches_picture, save
from selfsup.types import Normalization


def pictures(count, seed=0, split="train", size=12):
    images = torch.randint(0, 256, (count, 3, size, size), generator=torch.Generator().manual_seed(seed))
    normalization = Normalization((0.4, 0.5, 0.6), (0.3, 0.2, 0.1))
    return resident(
        images.to(torch.uint8), None, name="noise", split=split, image_size=size, normalization=normalization
    )


class Dense(nn.Module):
    """A map of 3 rows and 4 columns, so that they cannot be mixed up."""

    def forward_dense(self, images):
        return F.adaptive_avg_pool2d(images, (3, 4))


CELLS = torch.tensor([[4, 0, 3], [1, 2, 1], [4, 1, 0]])


def looped(queries, gallery, cells, k, same):
    """Image, row, column and cosine of the best cell of each of the ``k`` best images."""

    def features(dataset):
        images = dataset.read(torch.arange(len(dataset))).double() / 255
        mean, std = (torch.tensor(v).double().view(-1, 1, 1) for v in vars(dataset.normalization).values())
        return F.adaptive_avg_pool2d((images - mean) / std, (3, 4)).numpy()

    asked, there, answer = features(queries), features(gallery), []
    for position, row, column in cells.tolist():
        query, found = asked[position, :, row, column], []
        for other in range(len(gallery)):
            if same and gallery.index[other] == queries.index[position]:
                continue
            best = max(
                (float(query @ v) / float(np.linalg.norm(query) * np.linalg.norm(v)), r, c)
                for r in range(3)
                for c in range(4)
                for v in [there[other, :, r, c]]
            )
            found.append((best[0], other, best[1], best[2]))
        answer.append(sorted(found, reverse=True)[:k])
    return answer


@pytest.mark.parametrize("batch_size", [1, 4, 64])
@pytest.mark.parametrize("same", [True, False])
def test_the_best_cells_of_the_best_other_images(same, batch_size):
    queries = pictures(9)
    gallery = queries if same else pictures(7, 1, "test")
    encoder = Encoder(Dense(), batch_size, progress=False)
    found = retrieve_patches(encoder, queries, CELLS, None if same else gallery, k=4)
    expected = looped(queries, gallery, CELLS, 4, same)
    assert found.map_size == (3, 4)
    assert found.matches.tolist() == [[list(match[1:]) for match in row] for row in expected]
    torch.testing.assert_close(
        found.similarity.double(), torch.tensor([[m[0] for m in row] for row in expected]).double()
    )


def test_an_image_is_no_match_of_itself_in_another_part_of_its_source():
    whole = pictures(9)
    part = whole.subset(torch.tensor([7, 4, 1, 2, 0]))
    found = retrieve_patches(Encoder(Dense(), progress=False), whole, CELLS, part, k=4)
    expected = looped(whole, part, CELLS, 4, True)
    assert found.matches.tolist() == [[list(match[1:]) for match in row] for row in expected]
    assert 1 not in found.matches[0, :, 0]  # position of image 4
    assert len(looped(whole, part, CELLS, 9, True)[0]) == 4


def test_a_planted_copy_is_found_first():
    queries, gallery = pictures(3), pictures(6, 5, "test")
    gallery._images[4, :, 8:12, 3:6] = queries._images[2, :, 0:4, 6:9]
    found = retrieve_patches(Encoder(Dense(), progress=False), queries, torch.tensor([[2, 0, 2]]), gallery, k=2)
    assert found.matches[0, 0].tolist() == [4, 2, 1]
    assert found.similarity[0, 0] == pytest.approx(1, abs=1e-6)


def test_the_network_is_left_as_it_was():
    class Normed(Dense):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward_dense(self, images):
            return self.norm(super().forward_dense(images))

    network = Normed().train()
    retrieve_patches(Encoder(network, progress=False), pictures(5), CELLS[:2], k=2)
    assert network.training
    assert int(network.norm.num_batches_tracked) == 0


def test_the_picture_frames_the_cells(tmp_path):
    grey = pictures(6)
    grey._images.fill_(128)
    grey._images[:] += torch.arange(6, dtype=torch.uint8).view(-1, 1, 1, 1)
    found = retrieve_patches(Encoder(Dense(), progress=False), grey, CELLS, k=3)
    path = save(patches_picture(found, grey), tmp_path / "below" / "patches.png")
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    orange = (abs(pixels - np.array([255, 127, 14])) < 12).all(2)
    # one frame in each of 3 × 4 panels: the panels' shares of the picture each hold some orange
    height, width = orange.shape
    for row in range(3):
        for column in range(4):
            share = orange[row * height // 3 : (row + 1) * height // 3, column * width // 4 : (column + 1) * width // 4]
            assert share.sum() > 40


@pytest.mark.parametrize(
    ("cells", "k", "message"),
    [
        ([[0, 3, 0]], 1, "3 rows and 4 columns"),
        ([[0, 0, 4]], 1, "3 rows and 4 columns"),
        ([[5, 0, 0]], 1, "positions are 0 to 4"),
        ([[0, -1, 0]], 1, "rows and columns 0 on"),
        ([[0, 0]], 1, "image, row and column"),
        ([[0, 0, 0]], 5, "4 other images"),
        ([[0, 0, 0]], 0, "4 other images"),
    ],
)
def test_what_a_person_can_put_right(cells, k, message):
    with pytest.raises(UserError, match=message):
        retrieve_patches(Encoder(Dense(), progress=False), pictures(5), torch.tensor(cells), k=k)


def test_a_network_without_maps_or_with_nan_is_named():
    with pytest.raises(UserError, match="forward_dense"):
        retrieve_patches(Encoder(nn.Flatten(), progress=False), pictures(5), CELLS[:1], k=1)

    class Broken(Dense):
        def forward_dense(self, images):
            return super().forward_dense(images) * torch.nan

    with pytest.raises(UserError, match="NaN"):
        retrieve_patches(Encoder(Broken(), progress=False), pictures(5), CELLS[1:2], k=1)
