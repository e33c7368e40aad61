"""Maps of what a score comes from: by gradients along a path or at a layer, and by masks that are optimised."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from selfsup.functional.arguments import count, floats, number

Score = Callable[[Tensor], Tensor]

KERNEL, SIGMA = 11, 10.0  # of the blur that stands for "removed", in pixels


def spread(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Enlarge maps bilinearly so that their sums stay: ``[B,h,w]`` to ``[B,H,W]``.

    Each cell is shared out over the pixels by the weights that bilinear interpolation gives it there, divided by
    their sum, so that a map whose sum means something (a similarity) still has that sum.

    Args:
        maps: float ``[B,h,w]``.
        size: Height and width, at least those of the map.

    Raises:
        ValueError: Another shape, or a size below that of the map.
    """
    (maps,) = floats("spread", "[B,h,w]", maps=maps)
    if not isinstance(size, tuple) or len(size) != 2 or any(s < m for s, m in zip(size, maps.shape[1:], strict=True)):
        raise ValueError(
            f"spread: size must be (height, width), at least those of maps {list(maps.shape)}, got {size}."
        )
    rows, columns = (
        F.interpolate(torch.eye(m, dtype=maps.dtype, device=maps.device)[None], size=s, mode="linear")[0]
        for m, s in zip(maps.shape[1:], size, strict=True)
    )
    rows, columns = rows / rows.sum(1, keepdim=True), columns / columns.sum(1, keepdim=True)
    enlarged: Tensor = rows.T @ maps @ columns
    return enlarged


def norm_grad(activation: Tensor, gradient: Tensor) -> Tensor:
    """Return how strongly each place of a layer would pull at the weights of a 1×1 convolution there: ``[B,H,W]``.

    The Frobenius norm of the outer product of activation and gradient at a place, which is ``‖a‖ · ‖g‖`` (Rebuffi et
    al., "There and Back Again: Revisiting Backpropagation Saliency Methods", arXiv:2004.02866, NormGrad with a virtual
    1×1 identity convolution).

    Args:
        activation: float ``[B,D,H,W]``, the output of the layer.
        gradient: The same shape, of a score by it.

    Raises:
        ValueError: The shapes differ.
    """
    activation, gradient = floats("norm_grad", "[B,D,H,W]", activation=activation, gradient=gradient)
    product: Tensor = torch.linalg.vector_norm(activation, dim=1) * torch.linalg.vector_norm(gradient, dim=1)
    return product


def integrated_gradients(score: Score, images: Tensor, baseline: Tensor, steps: int = 100) -> Tensor:
    """Return the shares of the pixels in the difference of a score between images and a baseline: ``[B,C,H,W]``.

    ``(x - x₀) ⊙ 1/n Σ_k ∇s(x₀ + (k - ½)/n (x - x₀))``, whose sum tends to ``s(x) - s(x₀)`` with the number of steps
    (Sundararajan et al., "Axiomatic Attribution for Deep Networks", arXiv:1703.01365; middles of the steps).

    Args:
        score: Maps images ``[B,C,H,W]`` to one number each, ``[B]``, of an image by that image alone.
        images: float ``[B,C,H,W]``.
        baseline: The same shape: where nothing is seen.
        steps: n.

    Raises:
        ValueError: The shapes differ, or there are no steps.
    """
    floats("integrated_gradients", "[B,C,H,W]", images=images, baseline=baseline)
    count("integrated_gradients", steps=steps)
    images, baseline = images.detach(), baseline.detach()
    total = torch.zeros_like(images)
    for step in range(steps):
        total += gradient_of(score, torch.lerp(baseline, images, (step + 0.5) / steps))
    return (images - baseline) * total / steps


def gradient_of(score: Score, images: Tensor) -> Tensor:
    """Return the gradient of each image's score by its pixels, also where gradients are off."""
    with torch.enable_grad():
        copy = images.detach().clone().requires_grad_()
        values = score(copy)
        if values.shape != images.shape[:1]:
            raise ValueError(f"the score has shape {list(values.shape)} for {len(images)} images; give one an image")
        (gradient,) = torch.autograd.grad(values.sum(), copy)
    return gradient


def blurred(images: Tensor, kernel: int = KERNEL, sigma: float = SIGMA) -> Tensor:
    """Return images ``[B,C,H,W]`` under a Gaussian of ``kernel`` pixels, an odd number, mirrored at the edges.

    Raises:
        ValueError: Another shape, an even kernel, or one whose half exceeds the image.
    """
    (images,) = floats("blurred", "[B,C,H,W]", images=images)
    count("blurred", kernel=kernel)
    number("blurred", above=0, sigma=sigma)
    half = kernel // 2
    if kernel % 2 == 0 or half >= min(images.shape[2:]):
        raise ValueError(
            f"blurred: kernel must be odd and its half below the sides {list(images.shape[2:])}, got {kernel}."
        )
    x = torch.arange(-half, half + 1, dtype=images.dtype, device=images.device)
    weight = (-x.square() / (2 * sigma**2)).exp()
    weight = weight / weight.sum()
    flat = F.pad(images, (half, half, half, half), mode="reflect").flatten(0, 1)[:, None]
    smooth = F.conv2d(F.conv2d(flat, weight.view(1, 1, -1, 1)), weight.view(1, 1, 1, -1))
    return smooth.view(images.shape)


def deletion_mask(
    score: Score,
    images: Tensor,
    iterations: int = 300,
    side: int = 28,
    size_weight: float = 1e-2,
    smooth_weight: float = 1e-4,
) -> Tensor:
    """Return the smallest smooth mask whose blurring lowers a score most: ``[B,H,W]``, 1 where it blurs.

    Minimises ``s(m ⊙ x + (1 - m) ⊙ blur(x)) + λ₁ mean |1 - m| + λ₂ Σ ‖∇m‖^3`` over m in [0, 1] of ``side × side``,
    enlarged bilinearly, from ½ by Adam at 0.1, and gives ``1 - m`` (Fong and Vedaldi, "Interpretable Explanations of
    Black Boxes by Meaningful Perturbation", arXiv:1704.03296; the defaults of the author's PyTorch code,
    ruthcfong/pytorch-explain-black-box 49a77ee, where s is a probability).

    Args:
        score: As in :func:`integrated_gradients`.
        images: float ``[B,C,H,W]``, each with a mask of its own.
        iterations: Steps of Adam.
        side: Of the mask.
        size_weight, smooth_weight: λ₁ and λ₂.

    Raises:
        ValueError: Another shape or setting.
    """
    floats("deletion_mask", "[B,C,H,W]", images=images)
    count("deletion_mask", iterations=iterations, side=side)
    number("deletion_mask", least=0, size_weight=size_weight, smooth_weight=smooth_weight)
    images = images.detach()
    half = min(KERNEL // 2, *(length - 1 for length in images.shape[2:]))
    removed = blurred(images, 2 * half + 1)
    mask = images.new_full((len(images), 1, side, side), 0.5)
    with torch.enable_grad():
        mask.requires_grad_()
        optimizer = torch.optim.Adam([mask], lr=0.1)
        for _ in range(iterations):
            seen = torch.lerp(removed, images, _enlarged(mask, images))
            loss = score(seen) + size_weight * (1 - mask).abs().mean((1, 2, 3)) + smooth_weight * _variation(mask, 3.0)
            optimizer.zero_grad()
            (mask.grad,) = torch.autograd.grad(loss.sum(), mask)
            optimizer.step()
            with torch.no_grad():
                mask.clamp_(0, 1)
    return 1 - _enlarged(mask.detach(), images)[:, 0]


def infill_mask(
    score: Score,
    images: Tensor,
    iterations: int = 300,
    side: int = 14,
    size_weight: float = 0.1,
    temperature: float = 0.5,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return the probability that each place is kept so that few places, and what they tell of the rest, hold a score.

    Maximises ``E[s(z ⊙ x + (1 - z) ⊙ fill)] - λ mean p`` over the probabilities p of ``side × side`` cells, with z the
    Concrete relaxation of Bernoulli draws, one an iteration, by Adam at 0.05 from p = ½. ``fill`` is the weighted mean
    of what is seen around: ``blur(z ⊙ x) / blur(z)``, so that nothing hidden leaks (Chang et al., "Explaining Image
    Classifiers by Counterfactual Generation", arXiv:1807.08024, its smallest sufficient region). Of the paper's sheet
    only objective, rate and number of steps were at hand; the infill, λ and the temperature are ours, and the paper's
    generative infill is not offered.

    Args:
        score: As in :func:`integrated_gradients`.
        images: float ``[B,C,H,W]``.
        iterations: Steps of Adam.
        side: Cells along a side.
        size_weight: λ: what a cell must be worth to be kept.
        temperature: Of the relaxation.
        generator: Of the draws, on the CPU; None is the global one. All images get the same uniform numbers.

    Returns:
        float ``[B,H,W]`` in [0, 1].

    Raises:
        ValueError: Another shape or setting.
    """
    floats("infill_mask", "[B,C,H,W]", images=images)
    count("infill_mask", iterations=iterations, side=side)
    number("infill_mask", least=0, size_weight=size_weight)
    number("infill_mask", above=0, temperature=temperature)
    images = images.detach()
    nearest = max(1, min(images.shape[2:]) // 4)
    kernel, sigma = 2 * nearest - 1, max(0.5, nearest / 2)
    logits = images.new_zeros((len(images), 1, side, side))
    with torch.enable_grad():
        logits.requires_grad_()
        optimizer = torch.optim.Adam([logits], lr=0.05)
        for _ in range(iterations):
            noise = torch.rand(1, 1, side, side, generator=generator).clamp(1e-6, 1 - 1e-6).to(images)
            kept = _enlarged(((logits + noise.logit()) / temperature).sigmoid(), images)
            around = blurred(kept * images, kernel, sigma) / blurred(kept, kernel, sigma).clamp_min(1e-6)
            loss = size_weight * logits.sigmoid().mean((1, 2, 3)) - score(torch.lerp(around, images, kept))
            optimizer.zero_grad()
            (logits.grad,) = torch.autograd.grad(loss.sum(), logits)
            optimizer.step()
    return _enlarged(logits.detach().sigmoid(), images)[:, 0]


def _enlarged(mask: Tensor, images: Tensor) -> Tensor:
    return F.interpolate(mask, size=list(images.shape[2:]), mode="bilinear", align_corners=False)


def _variation(mask: Tensor, beta: float) -> Tensor:
    """Return ``Σ (dx² + dy²)^(β/2)`` of masks ``[B,1,s,s]``, for each."""
    down, right = mask[:, :, 1:, :-1] - mask[:, :, :-1, :-1], mask[:, :, :-1, 1:] - mask[:, :, :-1, :-1]
    squares = down.square() + right.square()
    return squares.pow(beta / 2).sum((1, 2, 3))
