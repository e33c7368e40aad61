import pytest
import timm
import torch
import torchvision
from torch import nn

from selfsup.errors import UserError
from selfsup.nn import BackboneConfig, build_backbone
from selfsup.types import Normalization


def build(channels=3, **settings):
    torch.manual_seed(0)
    return build_backbone(BackboneConfig(**settings), channels).eval()


def images(count=2, channels=3, size=32):
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("name", "dim"), [("resnet10t", 512), ("resnet18", 512), ("mobilenetv3_small_050", 1024)])
def test_a_timm_network_by_name(name, dim, channels):
    backbone = build(channels, name=name)
    assert backbone.dim == dim
    assert backbone.in_channels == channels
    with torch.no_grad():
        assert backbone(images(channels=channels)).shape == (2, dim)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("width", "blocks"), [(8, [1, 1, 1, 1]), (16, [1, 2, 1, 1]), (64, [2, 2, 2, 2])])
def test_a_narrow_resnet(width, blocks, channels):
    backbone = build(channels, name="resnet", width=width, blocks=blocks)
    network = backbone.network
    assert backbone.dim == 8 * width
    assert [len(getattr(network, f"layer{i + 1}")) for i in range(4)] == blocks
    convolutions = [name for name, _ in network.named_parameters() if "layer" in name and "conv" in name]
    assert len(convolutions) == 2 * sum(blocks)
    assert network.conv1.weight.shape == (width, channels, 3, 3)
    with torch.no_grad():
        stages = [network.layer1, network.layer2, network.layer3, network.layer4]
        x = network.act1(network.bn1(network.conv1(images(channels=channels))))
        for depth, stage in enumerate(stages):
            x = stage(x)
            assert x.shape == (2, width * 2**depth, 32 // 2**depth, 32 // 2**depth)
        assert backbone(images(channels=channels)).shape == (2, 8 * width)


def test_the_widest_narrow_resnet_is_resnet18():
    ours = {name: value.shape for name, value in build(name="resnet").network.state_dict().items()}
    timms = {name: value.shape for name, value in build(name="resnet18").network.state_dict().items()}
    assert ours == timms


@pytest.mark.parametrize("blocks", [[], [1, 1, 1], [1, 1, 1, 1, 1]])
def test_a_narrow_resnet_has_four_stages(blocks):
    with pytest.raises(UserError, match=r"backbone\.blocks"):
        build(name="resnet", width=8, blocks=blocks)


@pytest.mark.parametrize("name", ["resnet", "resnet18"])
def test_small_stem_keeps_the_resolution(name):
    network = build(name=name, width=8, blocks=[1, 1, 1, 1]).network
    stem = network.conv1
    assert (stem.kernel_size, stem.stride, stem.padding, stem.bias) == ((3, 3), (1, 1), (1, 1), None)
    assert isinstance(network.maxpool, nn.Identity)
    assert network.forward_features(images()).shape[2:] == (4, 4)


def test_stem_stride_and_the_large_stem():
    assert build(name="resnet", width=8, stem_stride=2).network.forward_features(images(size=64)).shape[2:] == (4, 4)
    large = build(name="resnet", width=8, small_stem=False).network
    assert (large.conv1.kernel_size, large.conv1.stride) == ((7, 7), (2, 2))
    assert isinstance(large.maxpool, nn.MaxPool2d)
    assert large.forward_features(images(size=64)).shape[2:] == (2, 2)


@pytest.mark.parametrize("settings", [{"name": "resnet18"}, {"name": "resnet", "width": 8}, {"name": "resnet10t"}])
@pytest.mark.parametrize("training", [False, True])
def test_the_spatial_mean_of_the_map_is_the_pooled_feature(settings, training):
    backbone = build(**settings).train(training)
    with torch.no_grad():
        dense, pooled = backbone.forward_dense(images(3)), backbone(images(3))
    assert dense.ndim == 4
    assert dense.shape[1] == backbone.dim
    torch.testing.assert_close(dense.mean((2, 3)), pooled, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("registers", [0, 4])
def test_transformer_tokens_lie_on_their_grid(registers):
    settings = {"img_size": 32, "patch_size": 8, "depth": 1, "embed_dim": 24, "num_heads": 2, "reg_tokens": registers}
    backbone = build(name="vit_tiny_patch16_224", kwargs=settings)
    network = backbone.network
    # without what mixes tokens, each cell is the embedding of the patch at its place
    network.blocks, network.norm = nn.Identity(), nn.Identity()
    nn.init.zeros_(network.pos_embed)
    with torch.no_grad():
        dense = backbone.forward_dense(images())
        assert dense.shape == (2, 24, 4, 4)
        torch.testing.assert_close(dense, network.patch_embed.proj(images()))


def test_a_network_with_a_hidden_layer_after_the_pooling_has_its_own_map_width():
    backbone = build(name="mobilenetv3_small_050")
    with torch.no_grad():
        assert backbone.forward_dense(images(size=64)).shape == (2, backbone.network.num_features, 2, 2)


def test_channels_last_maps_are_turned():
    settings = {"img_size": 64, "window_size": 2, "embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)}
    backbone = build(name="swin_tiny_patch4_window7_224", kwargs=settings)
    with torch.no_grad():
        dense = backbone.forward_dense(images(size=64))
        assert dense.shape == (2, 64, 2, 2)
        torch.testing.assert_close(dense.mean((2, 3)), backbone(images(size=64)), rtol=1e-4, atol=1e-5)


def test_tokens_of_a_rectangle_lie_row_by_row():
    settings = {"img_size": (32, 16), "patch_size": 8, "depth": 1, "embed_dim": 24, "num_heads": 2}
    backbone = build(name="vit_tiny_patch16_224", kwargs=settings)
    inputs = images()[..., :16]
    tokens = backbone.network.forward_features(inputs)[:, 1:]
    found = backbone.forward_dense(inputs)
    assert found.shape[-2:] == (4, 2)
    assert torch.equal(found[:, :, 2, 1], tokens[:, 5])


def test_resnet18_is_torchvisions_with_the_same_keys_and_the_same_output():
    torch.manual_seed(1)
    theirs = torchvision.models.resnet18(weights=None).eval()
    theirs.fc = nn.Identity()
    backbone = build(name="resnet18", small_stem=False)
    assert set(backbone.network.state_dict()) == set(theirs.state_dict())
    backbone.network.load_state_dict(theirs.state_dict())
    x = images(size=64)
    with torch.no_grad():
        torch.testing.assert_close(backbone(x), theirs(x), rtol=1e-4, atol=1e-5)


def test_the_statistics_of_the_images_travel_with_it():
    statistics = Normalization(mean=(0.5,), std=(0.25,))
    assert build_backbone(BackboneConfig(name="resnet", width=8), 1, statistics).normalization == statistics
    assert build().normalization is None


def test_an_unknown_name_brings_the_nearest():
    with pytest.raises(UserError, match=r"backbone\.name.*'reznet18'.*'resnet18'"):
        build(name="reznet18")


def test_unknown_arguments_of_the_network_are_named():
    with pytest.raises(UserError, match=r"backbone\.kwargs.*nonsense"):
        build(name="resnet18", kwargs={"nonsense": 1})


def test_convnet_stacks_what_its_settings_say():
    backbone = build_backbone(BackboneConfig(name="convnet", width=8, blocks=[1, 2, 1]), 3)
    convolutions = [m for m in backbone.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [(c.in_channels, c.out_channels, c.stride[0]) for c in convolutions] == [
        (3, 8, 1),
        (8, 16, 2),
        (16, 16, 1),
        (16, 32, 2),
    ]
    images = torch.rand(2, 3, 20, 20)
    dense = backbone.eval().forward_dense(images)
    assert dense.shape == (2, 32, 5, 5)
    assert backbone.dim == 32
    torch.testing.assert_close(dense.mean((2, 3)), backbone(images))


VIT = {"name": "vit_tiny_patch16_224", "kwargs": {"depth": 1, "embed_dim": 24, "num_heads": 2}}


def sized(sizes, channels=3, **settings):
    torch.manual_seed(0)
    return build_backbone(BackboneConfig(**settings), channels, image_sizes=sizes).eval()


@pytest.mark.parametrize(("sizes", "grid"), [([64], 4), ([64, 32], 4), ([32, 96, 64], 6)])
def test_a_transformer_is_built_for_the_largest_image_and_takes_the_others(sizes, grid):
    backbone = sized(sizes, **VIT)
    assert backbone.network.pos_embed.shape == (1, grid**2 + 1, 24)
    with torch.no_grad():
        for size in sizes:
            assert backbone(images(size=size)).shape == (2, 24)
            assert backbone.forward_dense(images(size=size)).shape == (2, 24, size // 16, size // 16)


def test_the_position_embedding_of_a_smaller_crop_is_the_interpolated_one():
    backbone = sized([64, 32], **VIT)
    network = backbone.network
    network.blocks = network.norm = nn.Identity()
    nn.init.zeros_(network.patch_embed.proj.weight)
    nn.init.zeros_(network.patch_embed.proj.bias)
    # a ramp stays a ramp: the middle of two cells of four is the mean of their positions
    ramp = torch.arange(4.0).view(1, 4, 1, 1).expand(1, 4, 4, 24)
    with torch.no_grad():
        network.pos_embed[:, 1:] = ramp.reshape(1, 16, 24)
        rows = backbone.forward_dense(images(size=32))[0, 0, :, 0]
    assert rows[0] + rows[1] == pytest.approx(3.0, abs=1e-4)
    assert 0.3 < rows[0] < 0.9


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "resnet10t"])
def test_a_network_that_fits_as_it_stands_draws_and_computes_what_it_always_did(name):
    settings = {"depth": 1} if "vit" in name else {"depths": (1, 1, 1, 1)} if "swin" in name else {}
    x = images(size=224)
    torch.manual_seed(0)
    theirs = timm.create_model(name, num_classes=0, **settings).eval()
    ours = sized([224], name=name, small_stem=False, kwargs=settings).network
    assert all(torch.equal(a, b) for a, b in zip(theirs.parameters(), ours.parameters(), strict=True))
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))


def test_networks_made_for_one_size_are_built_for_it():
    swin = {"name": "swin_tiny_patch4_window7_224", "kwargs": {"depths": (1, 1, 1, 1), "embed_dim": 24}}
    mixer = {"name": "mixer_s16_224"}
    with torch.no_grad():
        for settings, sizes in ((swin, [64, 28]), (mixer, [64])):
            backbone = sized(sizes, **settings)
            assert [backbone(images(size=size)).shape for size in sizes] == [(2, backbone.dim)] * len(sizes)


@pytest.mark.parametrize(
    ("name", "sizes", "message"),
    [
        ("vit_tiny_patch16_224", [64, 27], r"patches of 16 pixels.*27.*16 or 32.*augment\.sizes.*dynamic_img_pad"),
        ("mixer_s16_224", [64, 32], r"mixer_s16_224 cannot take sizes 32, 64 together.*made for 224"),
        ("mixer_s16_224", [40], r"patches of 16 pixels.*40.*32 or 48"),
        ("inception_v3", [32], r"inception_v3 cannot take images of 32 pixels.*made for 299"),
    ],
)
def test_sizes_that_a_network_does_not_take_are_named_with_some_that_it_does(name, sizes, message):
    with pytest.raises(UserError, match=message):
        sized(sizes, name=name)


def test_padding_takes_any_size():
    settings = VIT | {"kwargs": VIT["kwargs"] | {"dynamic_img_pad": True}}
    with torch.no_grad():
        assert sized([64, 27], **settings)(images(size=27)).shape == (2, 24)


@pytest.mark.parametrize("name", ["convnext_atto", "mobilenetv3_small_050", "vit_tiny_patch16_224", "convnet"])
def test_what_a_preset_says_of_resnets_is_nothing_to_other_networks(name):
    saying, silent = (build(name=name, width=4, zero_init_last=value) for value in (False, None))
    assert all(torch.equal(a, b) for a, b in zip(saying.parameters(), silent.parameters(), strict=True))


@pytest.mark.parametrize("name", ["resnet18", "regnety_002"])
@pytest.mark.parametrize("value", [False, True])
def test_residual_branches_start_as_the_setting_says(name, value):
    torch.manual_seed(0)
    theirs = timm.create_model(name, num_classes=0, zero_init_last=value)
    for settings in ({"zero_init_last": value}, {"kwargs": {"zero_init_last": value}}):  # the second: earlier versions
        ours = build(name=name, small_stem=False, **settings)
        assert all(torch.equal(a, b) for a, b in zip(theirs.parameters(), ours.network.parameters(), strict=True))


def test_two_words_on_one_thing_are_refused():
    with pytest.raises(UserError, match=r"backbone\.kwargs\.zero_init_last"):
        BackboneConfig(zero_init_last=True, kwargs={"zero_init_last": False})
