"""MAE: see a quarter of an image's patches and paint the others.

The encoder runs on the visible patches alone, which makes it cheap. A small decoder puts its outputs on their places, a
mask token with a position on every other, and predicts the pixels of all patches; the loss is the squared error at the
masked ones. He et al., "Masked Autoencoders Are Scalable Vision Learners", 2022. Read: facebookresearch/mae, efb2a80.

The network that remains is the encoder. Nothing teaches its class token, so its feature is the mean of the patch tokens
(``backbone=vit_small_mean``), seen whole.

Deviations: targets are normalised patch by patch unless ``normalize_pixels=false``, as in the authors' released models;
their code's default is plain pixels. The encoder is timm's, whose linear layers start by timm's rule; positions are
fixed sines and cosines as the authors' (in another order of channels) with ``backbone.fixed_positions=true``, as in the
presets. round(ratio · L) patches are masked, where the authors keep int((1 − ratio) · L); at 196 patches both keep 49.
"""

from __future__ import annotations

from dataclasses import dataclass

from selfsup.functional import kept_index, masked_squared_error, normalize_patches, patchify, random_mask
from selfsup.methods.base import Method, MethodConfig
from selfsup.methods.masked import check_masked, check_pooling
from selfsup.methods.parts import Parts
from selfsup.nn import TokenTransformer
from selfsup.registry import methods
from selfsup.settings import setting
from selfsup.types import Batch, StepOutput, View


@dataclass
class MAEConfig(MethodConfig):
    """MAE's settings, with the authors' defaults for ViT-B and larger.

    Attributes:
        mask_ratio: Share of the patches that the encoder does not see.
        normalize_pixels: Whether the pixels of each patch are brought to mean 0 and variance 1 before they are targets.
        decoder_width: Channels of the decoder, a multiple of four and of its heads. It runs on all patches: of 512
            channels and 8 blocks it costs 18 times the encoder for a ViT-Ti on 64 patches, so take 192 and 4 there.
        decoder_depth: Blocks of the decoder.
        decoder_heads: Attention heads of the decoder.
    """

    name: str = "mae"
    mask_ratio: float = setting(0.75, above=0, below=1)
    normalize_pixels: bool = True
    decoder_width: int = setting(512, least=4)
    decoder_depth: int = setting(8, least=1)
    decoder_heads: int = setting(16, least=1)


@methods.register("mae", MAEConfig, optimizer="mae", augment="mae", backbone="vit_small_mean")
class MAE(Method):
    """See a quarter of the patches and paint the others."""

    view_count = (1, 1)

    def __init__(self, config: MAEConfig, parts: Parts) -> None:
        super().__init__(parts)
        self.config = config
        self.grid, self.patch = check_masked(parts, config.mask_ratio)
        check_pooling(parts, "MAE")
        self.decoder = TokenTransformer(
            self.backbone.dim,
            self.patch**2 * self.backbone.in_channels,
            self.grid,
            config.decoder_width,
            config.decoder_depth,
            config.decoder_heads,
        )

    def step(self, views: tuple[View, ...], batch: Batch) -> StepOutput:
        """Return the mean squared error of the masked patches' pixels."""
        images = views[0].image
        mask = random_mask(self.draw(batch.index, 0), self.grid, self.config.mask_ratio)
        keep, mask = kept_index(mask).to(images.device), mask.to(images.device)
        seen = self.backbone.forward_tokens(images, keep=keep)
        prediction = self.decoder(seen.patches, keep, prefix=seen.prefix)
        target = patchify(images, self.patch)
        if self.config.normalize_pixels:
            target = normalize_patches(target)
        return StepOutput(masked_squared_error(prediction, target, mask))
