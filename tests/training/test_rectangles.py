"""Images of [height, width]: views, what evaluation sees, and a run from the command line to its exports."""

import json

import pytest
import torch
from torchvision.transforms import functional as tv

from selfsup.augment import ViewGenerator, ViewRecipe
from selfsup.cli import main
from selfsup.errors import UserError
from selfsup.eval.cropping import centres_of
from selfsup.eval.encoder import prepare_images
from selfsup.exporting import read_embeddings
from selfsup.nn import BackboneConfig, build_backbone
from selfsup.opened import open_network
from selfsup.ragged import pack
from selfsup.types import Normalization

IDENTITY = Normalization((0.0,), (1.0,))


def ramp(height, width):
    """Channels x and y of a pixel's centre in the unit square, and one half."""
    x, y = (torch.arange(width) + 0.5) / width, (torch.arange(height) + 0.5) / height
    return torch.stack([x.expand(height, width), y[:, None].expand(height, width), torch.full((height, width), 0.5)])


@pytest.mark.parametrize("size", [(24, 48), (48, 24)])
def test_the_pixels_of_a_view_are_where_it_says(size):
    recipe = ViewRecipe(scale=(0.2, 0.8), jitter_p=0.0, gray_p=0.0)
    (view,) = ViewGenerator([recipe], [size], IDENTITY)(ramp(60, 80).expand(32, -1, -1, -1), seed=0)
    assert view.image.shape[-2:] == size
    assert set((view.to_source[:, 0, 0] < 0).tolist()) == {True, False}
    x, y = ramp(*size)[:2]
    places = torch.stack([x, y, torch.ones(size)], 2)  # of cells of height × width
    expected = torch.einsum("hwk,bck->bchw", places, view.to_source)
    margin = (..., slice(5, -5), slice(5, -5))
    assert (view.image[:, :2] - expected)[margin].abs().max() < 0.15 / 60


def test_evaluation_covers_the_rectangle_and_cuts_the_middle():
    images = pack([(255 * ramp(h, w)).round().to(torch.uint8) for h, w in [(40, 60), (60, 40), (40, 160), (40, 40)]])
    for resize, (high, wide) in {None: (24, 48), 30: (30, 60)}.items():
        stored = centres_of(images, (24, 48), resize)
        found = prepare_images(stored, (24, 48), 3, resize=resize)
        assert found.shape == (4, 3, 24, 48)
        for image, (h, w) in zip(found, images.size.tolist(), strict=True):
            factor = max(high / h, wide / w)
            # an exact ramp says of the middle which part of the image is seen
            spans = (wide if resize is None else 48) / (factor * w), (24 if resize else high) / (factor * h)
            for channel, (span, pixels) in zip(image[:2], zip(spans, (48, 24), strict=True), strict=True):
                seen = float(channel.max() - channel.min())
                assert seen == pytest.approx(span * (1 - 1 / pixels), abs=0.03)
                assert float(channel.mean()) == pytest.approx(0.5, abs=0.02)
    one = (255 * ramp(40, 60)).round().to(torch.uint8)
    expected = tv.center_crop(tv.resize(one.float() / 255, [32, 48], antialias=True), [24, 48])
    assert torch.allclose(prepare_images(one[None], (24, 48), 3)[0], expected, atol=1e-5)
    noise = torch.randint(0, 256, (3, 40, 60), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    stored = centres_of(pack([noise]), (24, 48), 30)  # covers 30 × 60 as it is: nothing is resampled
    assert torch.allclose(prepare_images(stored, (24, 48), 3, resize=30)[0], tv.center_crop(noise / 255, [24, 48]))
    with pytest.raises(UserError, match="24×48; set it to 24"):
        prepare_images(one[None], (24, 48), 3, resize=20)


def test_a_transformer_lays_its_tokens_on_the_grid_of_the_image():
    small = {"depth": 1, "patch_size": 8, "embed_dim": 12, "num_heads": 2}
    config = BackboneConfig("vit_tiny_patch16_224", kwargs=small)
    network = build_backbone(config, 3, IDENTITY, [(16, 128), 32]).eval()  # 32 tokens, and 16, a square number
    assert network.forward_dense(torch.zeros(1, 3, 16, 128)).shape == (1, 12, 2, 16)
    assert network.forward_dense(torch.zeros(1, 3, 16, 64)).shape == (1, 12, 2, 8)
    assert network.forward_dense(torch.zeros(1, 3, 16, 32 * 4)).shape[-2:] == (2, 16)
    assert network.forward_dense(torch.zeros(1, 3, 8, 128)).shape[-2:] == (1, 16)
    with pytest.raises(UserError, match="of which 20 is not a multiple"):
        build_backbone(config, 3, IDENTITY, [(16, 20)])


def test_a_run_from_the_command_line_to_its_exports(tmp_path, capsys):
    root, run = tmp_path / "drawn", tmp_path / "run"
    for label in "ab":
        (root / "train" / label).mkdir(parents=True)
        for number in range(10):
            image = (ramp(*((40, 60) if number % 3 else (60, 40))) + number / 9).remainder(1)
            tv.to_pil_image(image).save(root / "train" / label / f"{number}.png")
    words = ["data=image_folder", f"data.root={root}", "data.workers=0", "trainer.accelerator=cpu", "batch_size=8"]
    words += [
        "data.holdout=0.2",
        "backbone=convnet",
        "backbone.width=4",
        "trainer.max_epochs=1",
        "data.image_size=[24,48]",
    ]
    assert main(["train", "method=simclr", *words, f"run_dir={run}", "trainer.progress=false"]) == 0
    assert open_network(run).image_size == (24, 48)
    assert main(["evaluate", f"checkpoint={run}", "accelerator=cpu", "--only", "knn", "eval.figures=false"]) == 0
    record = next(r for r in json.loads((run / "results.json").read_text())["results"] if r["protocol"] == "knn")
    assert (record["image_size"], record["crop"]) == ([24, 48], "cover 24×48, centre crop 24×48")
    assert main(["export", str(run), "--format", "torchscript", "--out", str(tmp_path / "net.pt")]) == 0
    assert torch.jit.load(str(tmp_path / "net.pt"))(torch.rand(2, 3, 24, 48)).shape == (2, 32)
    assert main(["embed", f"checkpoint={run}", "accelerator=cpu", "--out", str(tmp_path / "e.npz")]) == 0
    embeddings = read_embeddings(tmp_path / "e.npz")
    assert len(embeddings.features) == 20
    assert embeddings.about["image_size"] == [24, 48]
    capsys.readouterr()
    assert main(["train", "method=pixpro", *words, f"run_dir={tmp_path / 'dense'}"]) == 2
    assert "24×48 pixels is 3×6 and this method compares the cells of a square one" in capsys.readouterr().err
    assert main(["evaluate", f"checkpoint={run}", "accelerator=cpu", "--only", "corruptions"]) == 2
    assert "the corruptions are made for squares" in capsys.readouterr().err
