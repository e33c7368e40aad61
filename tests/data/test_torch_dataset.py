"""Anybody's torch dataset: every form of an image, labels from items or lists, and what is refused."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Subset, TensorDataset

from selfsup.data.torch_dataset import TorchDataset, as_images
from selfsup.errors import UserError

PIXELS = torch.randint(0, 256, (6, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


class Items:
    """A dataset of ready items."""

    def __init__(self, items, **attributes):
        self.items = items
        vars(self).update(attributes)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, position):
        return self.items[position]


@pytest.mark.parametrize("kind", ["tensor", "float", "array", "picture"])
def test_every_form_of_an_image_gives_its_pixels(kind):
    arrays = [image.permute(1, 2, 0).numpy() for image in PIXELS]
    forms = {
        "tensor": list(PIXELS),
        "float": list(PIXELS / 255),
        "array": arrays,
        "picture": [Image.fromarray(array) for array in arrays],
    }
    found = as_images(Items(forms[kind]))
    assert torch.equal(found.read(torch.arange(6)), PIXELS)
    assert (found.channels, found.image_size, found.labels) == (3, 8, None)


@pytest.mark.parametrize("label", [int, np.int64, torch.tensor])
def test_labels_come_with_the_items(label):
    found = as_images(Items([(image, label(row % 3)) for row, image in enumerate(PIXELS)]))
    assert found.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert found.classes == ("0", "1", "2")


def test_what_is_read_later_has_the_labels_that_the_dataset_lists():
    source = Items(list(PIXELS), targets=[0, 1, 0, 1, 0, 1], classes=["cat", "dog"])
    found = as_images(Subset(source, [5, 0, 2]), resident_limit_mb=0)
    assert isinstance(found, TorchDataset)
    assert found.labels.tolist() == [1, 0, 0]
    assert found.classes == ("cat", "dog")
    part = found.subset(torch.tensor([2, 0]))
    assert torch.equal(part.read(torch.tensor([0, 1])), PIXELS[[2, 5]])
    assert (part.labels.tolist(), part.index.tolist()) == ([0, 1], [2, 0])


def test_the_central_square_is_kept():
    wide = torch.zeros(3, 4, 8, dtype=torch.uint8)
    wide[:, :, 2:6] = 200
    found = as_images(TensorDataset(wide[None], torch.tensor([4])))
    assert torch.equal(found.read(torch.tensor([0])), torch.full((1, 3, 4, 4), 200, dtype=torch.uint8))
    assert as_images(Items([wide]), image_size=2).read(torch.tensor([0])).shape == (1, 3, 2, 2)


def test_real_valued_targets_are_no_classes():
    assert as_images(Items([(image, 0.5) for image in PIXELS])).labels is None


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "is empty"),
        (["a.jpg"], "item 0 of Items is not an image: it is str"),
        ([PIXELS[0].float()], r"its values go from 0 to 25\d; give floats in \[0, 1\]"),
        ([PIXELS[0].long()], "its type is torch.int64"),
        ([PIXELS[0].to(torch.uint16)], r"torch\.uint16; give uint8, .*data=image_folder reads files of 16 bits"),
        (
            [Image.fromarray(np.full((4, 4), 300, np.uint16))],
            r"mode I;16, which has more than 8 bits; data=image_folder",
        ),
        ([PIXELS[0], PIXELS[0, :1]], "item 1 has 1 channels and the first 3"),
    ],
)
def test_what_is_no_dataset_of_images_is_said(items, message):
    with pytest.raises(UserError, match=message):
        as_images(Items(items))


def test_floats_that_are_lowered_are_said(recwarn):
    as_images(Items([*(PIXELS / 255), *(PIXELS / 255).half()]))
    assert not recwarn
    with pytest.warns(UserWarning, match=r"floating-point images of a Dataset are kept with 8 bits; data=image_folder"):
        as_images(Items([torch.rand(3, 8, 8)]))
