"""Images of different shapes in one tensor."""

import pytest
import torch

from selfsup.ragged import Images, central_squares, cut, pack, unpack

SHAPES = [(5, 5), (5, 9), (8, 5), (5, 6)]


def images():
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(256, (3, *shape), generator=generator).to(torch.uint8) for shape in SHAPES]


def test_what_is_packed_is_unpacked():
    packed = pack(images())
    assert packed.pixels.shape == (3, sum(h * w for h, w in SHAPES))
    assert packed.size.tolist() == [list(shape) for shape in SHAPES]
    for found, image in zip(unpack(packed), images(), strict=True):
        assert torch.equal(found, image)


def test_squares_of_one_size_are_stacked_and_nothing_else_is():
    squares = [image[:, :5, :5] for image in images()]
    pixels, size = pack(squares)
    assert size is None
    assert torch.equal(pixels, torch.stack(squares))
    assert torch.equal(central_squares(Images(pixels)), pixels)
    # what is done to an oblong image must not depend on the shapes of the others
    assert pack([images()[1]] * 2).size.tolist() == [[5, 9], [5, 9]]


def test_boxes_are_cut_out():
    box = torch.tensor([[0, 1, 3, 4], [1, 5, 4, 4], [6, 0, 2, 5], [0, 0, 1, 1]] + [[0, 0, 2, 2]] * 4)
    found = cut(pack(images()), box)
    assert found.shape == (8, 3, 4, 5)
    for number, (top, left, height, width) in enumerate(box.tolist()):
        expected = torch.zeros(3, 4, 5, dtype=torch.uint8)
        expected[:, :height, :width] = images()[number % 4][:, top : top + height, left : left + width]
        assert torch.equal(found[number], expected)


def test_central_squares_are_the_middle():
    found = central_squares(pack(images()))
    expected = [images()[0], images()[1][:, :, 2:7], images()[2][:, 1:6], images()[3][:, :, :5]]
    assert torch.equal(found, torch.stack(expected))
    with pytest.raises(ValueError, match=r"shorter sides of these images are \[4, 5\]"):
        central_squares(pack([images()[0], images()[1][:, :4]]))
