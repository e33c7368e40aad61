"""The memory of images: rows by index, whatever the order; what is written is kept, normalised, and in the state."""

import pytest
import torch

from selfsup.nn import ImageMemory

INDEX = torch.tensor([40, 3, 17, 5, 90])


def test_rows_are_found_by_index_in_any_order():
    memory = ImageMemory(INDEX, 4, 2)
    assert memory.index.tolist() == [3, 5, 17, 40, 90]
    assert memory.rows(torch.tensor([90, 3, 40])).tolist() == [4, 0, 3]
    assert len(memory) == 5


@pytest.mark.parametrize("stranger", [4, 0, 91, -1])
def test_an_image_that_it_was_not_built_for_is_named(stranger):
    with pytest.raises(ValueError, match=f"built for 5 images, and {stranger} is no index of them"):
        ImageMemory(INDEX, 4).rows(torch.tensor([3, stranger]))
    with pytest.raises(ValueError, match="built for 0 images"):
        ImageMemory(None, 4).rows(torch.tensor([0]))


def test_what_is_written_lies_at_its_image_with_length_one():
    memory = ImageMemory(INDEX, 2, 2)
    before = memory.values.clone()
    torch.testing.assert_close(before.norm(dim=2), torch.ones(2, 5))
    memory.write(
        memory.rows(torch.tensor([17, 3])), torch.tensor([[[3.0, 4.0], [0.0, 2.0]], [[-1.0, 0.0], [5.0, 0.0]]])
    )
    expected = before.clone()
    expected[0, 2], expected[0, 0] = torch.tensor([0.6, 0.8]), torch.tensor([0.0, 1.0])
    expected[1, 2], expected[1, 0] = torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 0.0])
    torch.testing.assert_close(memory.values, expected)


def test_a_loaded_memory_knows_the_images_of_its_checkpoint():
    memory = ImageMemory(torch.arange(5), 2)
    memory.rows(torch.tensor([4]))  # what it knew
    memory.load_state_dict(ImageMemory(INDEX, 2).state_dict())
    assert memory.rows(torch.tensor([90])).tolist() == [4]
    with pytest.raises(ValueError, match="and 4 is no index"):
        memory.rows(torch.tensor([4]))
