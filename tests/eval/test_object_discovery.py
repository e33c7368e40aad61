"""Object discovery on networks whose keys are known, and its score by loops over pixels."""

from __future__ import annotations

import pytest
import torch
from measuring import changed, evaluate
from tiny import resident
from torch import nn

from selfsup.data.base import Splits
from selfsup.errors import UserError
from selfsup.eval import Encoder, eval_config
from selfsup.eval.protocols.object_discovery import last_keys, objects_of, overlaps
from selfsup.nn.backbone import BackboneConfig
from selfsup.nn.building import build_backbone
from selfsup.types import Normalization

PLAIN = Normalization((0.5,) * 3, (0.25,) * 3)
CONFIG = eval_config(batch_size=8)


def scenes(count=8, size=24, masks=True, empty=(), small=False):
    """A red rectangle on blue, on a grid of 4 pixels; ``small`` masks are of a quarter of it."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.zeros(count, size, size, dtype=torch.uint8)
    images = torch.zeros(count, 3, size, size, dtype=torch.uint8)
    images[:, 2] = 250
    for number in range(count):
        top, left = (4 * torch.randint(0, 4, (2,), generator=generator)).tolist()
        images[number, 0, top : top + 8, left : left + 12] = 250
        images[number, 2, top : top + 8, left : left + 12] = 0
        if number not in empty:
            high, wide = (4, 6) if small else (8, 12)
            truth[number, top : top + high, left : left + wide] = 1 + number % 3
    data = resident(images, None, name="boxes", split="test", image_size=size, normalization=PLAIN,
                    masks=truth if masks else None)  # fmt: skip
    return Splits(data, data, data.subset(torch.arange(0)), data)


def vit(size=24, depth=2, **kwargs):
    torch.manual_seed(0)
    own = {"img_size": size, "patch_size": 4, "depth": depth, "embed_dim": 12, "num_heads": 3} | kwargs
    return build_backbone(BackboneConfig("vit_tiny_patch16_224", kwargs=own), 3, PLAIN)


def seeing_colours():
    """Its keys are the mean colours of the patches, and the other token's key is far from all."""
    backbone = vit(depth=1)
    network = backbone.network
    with torch.no_grad():
        for weight in network.parameters():
            weight.zero_()
        for channel in range(3):
            network.patch_embed.proj.weight[channel, channel] = 1 / 16
        network.blocks[0].attn.qkv.weight[12:24] = torch.eye(12)
        network.cls_token[:] = 100.0
    network.blocks[0].norm1 = nn.Identity()
    return backbone


def values(records):
    return {(r["method"], r["metric"]): r["value"] for r in records}


def test_an_object_that_the_keys_tell_is_found_to_the_pixel(tmp_path):
    records = evaluate(seeing_colours(), scenes(), CONFIG, ["object_discovery"], run_dir=tmp_path)
    expected = dict.fromkeys([(m, what) for m in ("lost", "token_cut") for what in ("corloc", "mask_iou")], 1.0)
    assert values(records) == expected
    assert [r["whole_image"] for r in records[:2]] == pytest.approx([0.0, 96 / 576])
    assert (records[0]["images"], records[0]["candidates"], records[2]["threshold"]) == (8, 100, 0.2)
    assert (tmp_path / "figures" / "object_discovery.png").stat().st_size > 5_000


def test_images_without_an_object_are_left_out_and_others_score_by_their_overlap():
    config = changed(CONFIG, object_discovery={"methods": ["token_cut"]})
    records = evaluate(seeing_colours(), scenes(empty=(1, 4), small=True), config, ["object_discovery"])
    assert values(records) == pytest.approx({("token_cut", "corloc"): 0.0, ("token_cut", "mask_iou"): 0.25})
    assert records[0]["images"] == 6
    with pytest.raises(UserError, match="no mask of 'boxes' test has an object"):
        evaluate(seeing_colours(), scenes(empty=range(8)), config, ["object_discovery"])


@pytest.mark.parametrize("kwargs", [{}, {"qk_norm": True}, {"reg_tokens": 2}])
def test_keys_are_those_of_the_last_block(kwargs):
    backbone, data = vit(**kwargs), scenes().test
    found, images = last_keys(Encoder(backbone, 3, progress=False), backbone, data)
    assert torch.equal(images.index, data.index)
    pixels = (data.read(torch.arange(8)).float() / 255 - 0.5) / 0.25
    attention = backbone.network.blocks[-1].attn
    seen = {}
    handle = attention.register_forward_pre_hook(lambda module, inputs: seen.update(x=inputs[0]))
    with torch.no_grad():
        backbone.eval()(pixels)
        handle.remove()
        prefix = backbone.network.num_prefix_tokens
        key = attention.qkv.weight[12:24], attention.qkv.bias[12:24]
        expected = torch.nn.functional.linear(seen["x"], *key)[:, prefix:]
        if kwargs.get("qk_norm"):
            expected = attention.k_norm(expected.reshape(8, -1, 3, 4)).flatten(2)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not attention.qkv._forward_hooks


def test_objects_are_the_parts_of_each_class():
    mask = torch.zeros(5, 6, dtype=torch.uint8)
    mask[0, 0] = mask[1, 1] = 1  # touch by a corner
    mask[4, 4:] = 1
    mask[1, 2] = 2
    mask[2, 2] = 255
    found = {tuple(map(tuple, one.nonzero().tolist())) for one in objects_of(mask)}
    assert found == {((0, 0), (1, 1)), ((4, 4), (4, 5)), ((1, 2),)}
    assert objects_of(torch.full((2, 2), 255, dtype=torch.uint8)).shape == (0, 2, 2)


def test_overlaps_are_counted_pixel_by_pixel():
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        found = torch.rand(5, 6, generator=generator) < 0.2
        found[2, 3] = True
        objects = torch.rand(3, 5, 6, generator=generator) < 0.3
        objects[:, 1, 1] = True
        best = [0.0, 0.0]
        for one in objects:
            own, other = ({tuple(place) for place in mask.nonzero().tolist()} for mask in (found, one))
            best[1] = max(best[1], len(own & other) / len(own | other))
            boxes = []
            for places in (own, other):
                ys, xs = zip(*places, strict=True)
                boxes.append({(y, x) for y in range(min(ys), max(ys) + 1) for x in range(min(xs), max(xs) + 1)})
            best[0] = max(best[0], len(boxes[0] & boxes[1]) / len(boxes[0] | boxes[1]))
        assert overlaps(found, objects) == pytest.approx(tuple(best))
    assert overlaps(torch.zeros(5, 6, dtype=torch.bool), objects) == (0.0, 0.0)


def test_what_cannot_be_judged_is_a_sentence():
    resnet = build_backbone(BackboneConfig("resnet", width=4, blocks=[1, 1, 1, 1]), 3, PLAIN)
    with pytest.raises(UserError, match="ResNet is none"):
        evaluate(resnet, scenes(), CONFIG, ["object_discovery"])
    with pytest.raises(UserError, match="no masks"):
        evaluate(vit(), scenes(masks=False), CONFIG, ["object_discovery"])
    with pytest.raises(UserError, match="there is no 'ncut'; give some of lost, token_cut"):
        evaluate(vit(), scenes(), changed(CONFIG, object_discovery={"methods": ["ncut"]}), ["object_discovery"])
    own = {"img_size": 24, "patch_size": 4, "depth": 1, "embed_dim": 12, "num_heads": 3, "use_fc_norm": False}
    eva = build_backbone(BackboneConfig("eva02_tiny_patch14_224", kwargs=own), 3, PLAIN)
    with pytest.raises(UserError, match="Eva have an attention of another kind"):
        evaluate(eva, scenes(), CONFIG, ["object_discovery"])
