"""Every public function answers rightly or refuses: a ValueError that names the argument, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import selfsup.functional as functional
from selfsup.functional.arguments import trusted_values


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def attention(tokens: int) -> Tensor:
    return draw(2, 3, tokens, tokens).softmax(-1)


def score(images: Tensor) -> Tensor:
    return images.sum((1, 2, 3))


def numbers(which: Any) -> Tensor:
    """Uniform numbers of two images, as samplers of masks ask for them."""
    start, stop = (0, which) if isinstance(which, int) else (which[0], which[-1] + 1)
    whole = torch.rand(2, 1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return whole[:, start:stop]


SAMPLER = {"draw": numbers, "grid": (4, 4)}
MAP, MASK = draw(2, 3, 2, 2), torch.ones(2, 4, 4, dtype=torch.bool)
TO_SOURCE = torch.tensor([[0.5, 0, 0.1], [0, 0.5, 0.2]]).repeat(2, 1, 1)
TOKEN_MASK = torch.tensor([[True, False, True, False]]).repeat(2, 1)
PAIRS = functional.view_pairs(draw(2, 6, 3))
#: A call of each function that is right.
CALLS: dict[str, dict[str, Any]] = {
    "align_uniform": {"views": draw(2, 6, 3), "queue": draw(5, 3), "alpha": 2.0, "t": 2.0},
    "attraction_repulsion": {
        "pairs": PAIRS,
        "attraction": 1.0,
        "repulsion": 1.0,
        "positive_temperature": 1.0,
        "negative_temperature": 2.0,
    },
    "debiased_contrastive": {"pairs": PAIRS, "temperature": 0.5, "prior": 0.1, "concentration": 0.5},
    "decoupled_contrastive": {"pairs": PAIRS, "temperature": 0.1, "sigma": 0.5},
    "decoupled_uniformity": {"views": draw(2, 6, 3), "t": 2.0, "kernel": torch.eye(6), "ridge": 0.01},
    "global_contrastive": {"pairs": PAIRS, "temperature": 0.1, "log_normalizer": draw(12)},
    "kernel_nce": {"pairs": PAIRS, "temperature": 0.1, "gamma": 1.0},
    "log_mean_exp_negatives": {"pairs": PAIRS, "temperature": 0.1},
    "model_aware_temperature": {"pairs": PAIRS, "temperature": 0.1, "alpha": 0.5, "offset": 0.0},
    "mv_dhel": {"views": draw(2, 6, 3), "temperature": 0.2},
    "mv_info_nce": {"views": draw(2, 6, 3), "temperature": 0.2},
    "pair_nce": {"pairs": PAIRS, "temperature": 0.2},
    "poly_view_loss": {"pairs": PAIRS, "temperature": 0.2},
    "queue_pairs": {"query": draw(6, 3), "key": draw(6, 3), "negatives": draw(5, 3), "mixed": draw(6, 2, 3)},
    "reweighted_nce": {"pairs": PAIRS, "temperature": 0.2},
    "view_pairs": {"views": draw(2, 6, 3), "positives": torch.arange(6) // 2},
    "alignment": {"z1": draw(6, 3), "z2": draw(6, 3), "alpha": 2},
    "alpha_req": {"features": draw(20, 8), "first": 3},
    "attention_iou": {"attention": attention(4)[:, :, 0], "inside": torch.eye(4)[:2].bool(), "mass": 0.6},
    "commonest_offset": {"key": torch.ones(2, 3, 4, dtype=torch.long)},
    "augmented_distance": {"views": draw(6, 2, 3)},
    "blurred": {"images": draw(2, 3, 4, 4), "kernel": 3, "sigma": 1.0},
    "deletion_mask": {
        "score": score,
        "images": draw(2, 3, 8, 8),
        "iterations": 1,
        "side": 4,
        "size_weight": 0.01,
        "smooth_weight": 0.01,
    },
    "graph_segments": {"image": draw(3, 6, 6), "scale": 50.0, "sigma": 0.8, "smallest": 2},
    "infidelity": {"changes": draw(5, 2), "predicted": draw(5, 2)},
    "infill_mask": {
        "score": score,
        "images": draw(2, 3, 8, 8),
        "iterations": 1,
        "side": 4,
        "size_weight": 0.01,
        "temperature": 0.5,
    },
    "information_area": {"information": draw(3, 2).sigmoid(), "response": draw(3, 2).sigmoid()},
    "integrated_gradients": {
        "score": score,
        "images": draw(2, 3, 4, 4),
        "baseline": draw(2, 3, 4, 4) + 1,
        "steps": 2,
    },
    "max_sensitivity": {
        "explain": lambda images: images.mean(1),
        "images": draw(2, 3, 4, 4),
        "maps": draw(2, 4, 4),
        "radius": 0.1,
        "samples": 2,
    },
    "norm_grad": {"activation": MAP, "gradient": MAP + 1},
    "region_order": {"attribution": draw(4, 4), "masks": MASK, "fewest": 1},
    "separation": {"maps": draw(2, 4, 4), "inside": torch.rand(2, 4, 4) < 0.5},
    "spread": {"maps": draw(2, 2, 2), "size": (4, 4)},
    "widened": {"masks": MASK, "radius": 1},
    "class_overlap": {"views": draw(6, 2, 3), "labels": torch.arange(6) // 2},
    "dense_alignment": {"features1": MAP, "features2": MAP + 1, "mask": MASK, "alpha": 2},
    "match_accuracy": {"features1": MAP, "features2": MAP + 1, "mask": MASK},
    "misaligned_share": {"views": draw(6, 2, 3), "epsilon": 0.5},
    "attention_distance": {"attention": attention(4), "patch_size": 16.0},
    "block_mask": {**SAMPLER, "count": 6, "least": 2, "aspect": 0.3},
    "gram_distance": {"features": draw(6, 3), "original": draw(6, 4)},
    "gram_loss": {"patches": draw(2, 4, 3), "anchor": draw(2, 4, 5)},
    "grid_mask": {**SAMPLER, "ratio": 0.5, "cell": 2},
    "inverse_block_mask": {**SAMPLER, "ratio": 0.5, "aspect": 0.5},
    "kept_index": {"mask": torch.tensor([[True, False, True], [False, True, True]])},
    "koleo_loss": {"features": draw(6, 3)},
    "map_distillation": {"student": MAP, "teacher": draw(2, 3, 4, 3)},
    "mask_of": {"kept": torch.tensor([[0, 2], [1, 2]]), "length": 4},
    "masked_cross_entropy": {
        "student": draw(5, 3),
        "target": draw(5, 3).softmax(1),
        "image": torch.tensor([0, 0, 1, 1, 1]),
        "images": 2,
        "temperature": 0.2,
    },
    "mixed_ratios": {"draw": numbers, "low": 0.1, "high": 0.5, "share": 0.5},
    "multi_block_masks": {"draw": numbers, "grid": (8, 8), "targets": 2, "min_context": 4},
    "random_mask": {**SAMPLER, "ratio": 0.5},
    "stratified_ratios": {"draw": numbers, "count": 4, "low": 0.1, "high": 0.5, "share": 0.5},
    "attention_nmi": {"attention": attention(4)},
    "barlow_twins_loss": {"z1": draw(6, 3), "z2": draw(6, 3), "redundancy_weight": 0.1, "eps": 1e-5},
    "channel_whiten": {"x": draw(3, 8), "groups": 2, "eps": 0.0},
    "channel_whitening_mse": {"views": draw(2, 6, 8), "subbatch_size": 3, "groups": 2, "eps": 0.0},
    "centroid_distance": {"views": draw(3, 6, 4)},
    "coding_rate": {"views": draw(2, 6, 3), "eps": 0.2},
    "cross_view_nce": {"query": draw(6, 3), "key": draw(6, 3), "temperature": 0.2},
    "deepcluster_loss": {
        "scores": [draw(2, 6, 3), draw(2, 6, 4)],
        "assignment": torch.ones(2, 6, dtype=torch.long),
        "temperature": 0.1,
    },
    "dense_info_nce": {
        "query": MAP,
        "key": MAP + 1,
        "match": torch.ones(2, 4, dtype=torch.long),
        "negatives": draw(5, 3),
        "temperature": 0.2,
    },
    "dense_match": {"features_q": MAP, "features_k": MAP + 1},
    "dino_loss": {
        "student": [draw(6, 3), draw(6, 3)],
        "teacher": [draw(6, 3), draw(6, 3)],
        "center": draw(3),
        "student_temperature": 0.1,
        "teacher_temperature": 0.05,
    },
    "effective_rank": {"values": draw(6).abs()},
    "feature_loss": {"embeddings": (draw(6, 3), draw(6, 3)), "targets": (draw(6, 3), draw(6, 3))},
    "feature_std": {"features": draw(6, 3)},
    "fourier_log_amplitude": {"features": MAP},
    "group_prediction": {
        "prediction": draw(6, 3),
        "groups": draw(4, 3),
        "target": draw(6, 4),
        "temperature": 0.1,
    },
    "emp_ssl_loss": {"views": draw(3, 6, 3), "similarity_weight": 200.0, "eps": 0.2},
    "frossl_loss": {"views": draw(3, 6, 4), "invariance_weight": 1.4},
    "info_nce": {"query": draw(6, 3), "key": draw(6, 3), "negatives": draw(5, 3), "temperature": 0.2},
    "intl_loss": {"views": draw(2, 6, 8), "trace_weight": 0.1, "iterations": 4},
    "iterative_whiten": {"x": draw(6, 8), "iterations": 4},
    "layer_target": {"layers": [draw(2, 4, 3), draw(2, 4, 3)], "eps": 1e-5},
    "lidar": {"features": draw(6, 4, 3), "delta": 1e-4},
    "linear_cka": {"x": draw(6, 3), "y": draw(6, 4)},
    "location_grid": {"to_source": TO_SOURCE, "size": 3},
    "lost": {"keys": draw(2, 6, 3), "grid": (2, 3), "candidates": 4},
    "masked_absolute_error": {"prediction": draw(2, 4, 3), "target": draw(2, 4, 3), "mask": TOKEN_MASK},
    "masked_smooth_l1": {"prediction": draw(2, 4, 3), "target": draw(2, 4, 3), "mask": TOKEN_MASK, "beta": 2.0},
    "masked_squared_error": {"prediction": draw(2, 4, 3), "target": draw(2, 4, 3), "mask": TOKEN_MASK},
    "masking_map": {"score": score, "images": draw(2, 3, 4, 4), "masks": 3, "grid": 2, "keep": 0.5},
    "mec_loss": {"prediction": draw(6, 3), "target": draw(6, 3), "weight": 0.1, "order": 4},
    "momentum_groups": {"z": draw(6, 3), "groups": draw(4, 3), "momentum": 0.9},
    "mmcr_loss": {"views": draw(3, 6, 4), "local_weight": 0.1},
    "nearest_neighbor": {"query": draw(6, 3), "candidates": draw(5, 3)},
    "nearest_neighbors": {"query": draw(6, 3), "candidates": draw(5, 3), "k": 2},
    "negative_cosine": {"prediction": draw(6, 3), "target": draw(6, 3)},
    "normalize_patches": {"patches": draw(2, 4, 3), "eps": 1e-6},
    "nt_xent": {"z1": draw(6, 3), "z2": draw(6, 3), "temperature": 0.2},
    "orthogonal_equivariance": {"z1": draw(6, 3), "z2": draw(6, 3) + 1},
    "orthogonal_map": {"x": draw(6, 3), "y": draw(6, 4)},
    "patch_attention": {"attention": attention(5), "prefix": 1},
    "patchify": {"images": draw(2, 3, 4, 4), "patch": 2},
    "pixcontrast_loss": {"query": MAP, "key": MAP + 1, "mask": MASK, "temperature": 0.2},
    "pixpro_loss": {"prediction": MAP, "target": MAP + 1, "mask": MASK},
    "pixpro_mask": {"to_source_q": TO_SOURCE, "to_source_k": TO_SOURCE, "size": 2, "threshold": 0.7},
    "rank_me": {"features": draw(6, 3)},
    "resample_map": {"features": MAP, "size": (3, 4)},
    "ressl_loss": {
        "query": draw(6, 3),
        "key": draw(6, 3),
        "anchors": draw(5, 3),
        "query_temperature": 0.1,
        "key_temperature": 0.04,
    },
    "chosen_places": {"draw": numbers, "mask": TOKEN_MASK, "share": 0.5},
    "positionwise_sinkhorn": {"scores": draw(4, 2, 3), "epsilon": 0.06, "iterations": 3},
    "code_prediction": {"scores": draw(2, 6, 3), "codes": draw(6, 3).softmax(1), "temperature": 0.1},
    "prior_divergence": {"scores": draw(6, 3), "temperature": 0.1, "exponent": 0.25},
    "sharpened_codes": {"scores": draw(6, 3), "temperature": 0.1, "sharpening": 0.25, "iterations": 3},
    "sigreg": {"views": draw(2, 6, 3), "slices": 5, "knots": 4, "limit": 3.0},
    "similarity_distillation": {
        "student": draw(6, 3),
        "teacher": draw(6, 3),
        "queue": draw(5, 3),
        "temperature": 0.2,
        "teacher_temperature": 0.1,
    },
    "similarity_maps": {"features1": MAP, "features2": MAP + 1},
    "singular_values": {"features": draw(6, 3)},
    "sinkhorn": {"scores": draw(6, 3), "epsilon": 0.05, "iterations": 3},
    "smooth_grad": {"score": score, "images": draw(2, 3, 4, 4), "samples": 2, "noise": 0.1},
    "spherical_lloyd": {"points": draw(6, 3), "centroids": draw(2, 3), "iterations": 3},
    "supervised_contrastive": {"features": draw(2, 6, 3), "positives": torch.arange(6) // 2, "temperature": 0.2},
    "swapped_prediction": {
        "scores": [draw(6, 3), draw(6, 3)],
        "codes": [draw(6, 3).softmax(1)],
        "temperature": 0.1,
    },
    "tico_loss": {
        "query": draw(6, 3),
        "key": draw(6, 3),
        "remembered": draw(3, 3),
        "momentum": 0.9,
        "covariance_weight": 8.0,
    },
    "token_cut": {"features": draw(2, 6, 3), "grid": (2, 3), "threshold": 0.2},
    "tolerance": {"z": draw(6, 3), "labels": torch.arange(6) // 2},
    "twist_loss": {"logits1": draw(6, 3), "logits2": draw(6, 3), "temperature": 1.0, "evenness_weight": 1.0},
    "uniformity": {"z": draw(6, 3), "t": 2},
    "unpatchify": {"patches": draw(2, 4, 12), "grid": (2, 2), "channels": 3},
    "vibcreg_loss": {"z1": draw(6, 3), "z2": draw(6, 3), "invariance_weight": 25.0, "eps": 1e-4},
    "vicreg_loss": {"z1": draw(6, 3), "z2": draw(6, 3), "invariance_weight": 25.0, "eps": 1e-4},
    "vicregl_loss": {
        "maps": [draw(6, 3, 2, 2), draw(6, 3, 2, 2)],
        "to_source": [TO_SOURCE.repeat(3, 1, 1), TO_SOURCE.repeat(3, 1, 1)],
        "eps": 1e-4,
    },
    "visreg": {"views": draw(2, 6, 3), "slices": 5},
    "whiten": {"x": draw(12, 3), "eps": 0.0},
    "whitening_mse": {"views": draw(2, 12, 3), "subbatch_size": 6, "iterations": 1, "eps": 0.0},
}


def spoilt(x: Tensor) -> Iterator[tuple[str, Any]]:
    """What stands in for a tensor and means nothing."""
    yield "None", None
    yield "a list", x.tolist()
    yield "NumPy", x.numpy()
    yield "complex", x.to(torch.complex64)
    yield "empty", x[:0]
    yield "a number", x.new_zeros(())
    yield "meta", x.to("meta")
    yield "sparse", x.to_sparse()
    if x.is_floating_point():
        yield "whole numbers", x.long()
        yield "infinite", torch.full_like(x, math.inf)
        for value in (math.nan, -math.inf):
            one = x.clone()
            one.view(-1)[-1] = value
            yield f"one {value}", one
    else:
        yield "floats", x.float()


def test_every_function_has_a_call() -> None:
    assert sorted(CALLS) == sorted(functional.__all__)


@pytest.mark.parametrize("name", sorted(CALLS))
def test_what_means_nothing_is_refused_by_name(name: str) -> None:
    function: Callable[..., Any] = getattr(functional, name)
    call = CALLS[name]
    function(**call)
    for argument, value in call.items():
        stands: list[tuple[str, Any]] = []
        if isinstance(value, Tensor):
            stands = list(spoilt(value))
        elif isinstance(value, list):
            stands = [(what, [*value[:-1], bad]) for what, bad in spoilt(value[-1])] + [("no list", [])]
        elif isinstance(value, int | float):
            stands = [(repr(bad), bad) for bad in (math.nan, math.inf, None, "x", True)]
            stands += [("a half", 1.5), ("below", -1)] if argument in COUNTS else []
        for what, bad in stands:
            if what == "one nan" and argument.startswith("to_source"):
                continue  # stands for a view without a map
            if what == "None" and (name, argument) in (
                ("align_uniform", "queue"),
                ("decoupled_uniformity", "kernel"),
                ("decoupled_contrastive", "sigma"),
                ("queue_pairs", "mixed"),
                ("view_pairs", "positives"),
            ):
                continue  # stands for having none
            if what == "empty" and (argument == "negatives" or name in ("location_grid", "sinkhorn")):
                continue  # a queue that has just begun; no views; no sample on this rank
            with pytest.raises(ValueError, match=argument) as refusal:
                function(**{**call, argument: bad})
            assert "\n" not in str(refusal.value), what


COUNTS = {
    "cell",
    "count",
    "images",
    "least",
    "length",
    "min_context",
    "targets",
    "first",
    "grid",
    "groups",
    "iterations",
    "k",
    "knots",
    "masks",
    "order",
    "prefix",
    "samples",
    "size",
    "slices",
    "subbatch_size",
}
COUNTS = {"first", "size", "masks", "grid", "iterations", "samples", "subbatch_size", "prefix", "patch", "channels"}


@pytest.mark.parametrize("temperature", [0, -1.0])
def test_a_temperature_is_above_zero(temperature: float) -> None:
    for name, call in CALLS.items():
        for argument in call:
            if argument.endswith("temperature") or (name, argument) in (("sinkhorn", "epsilon"), ("lidar", "delta")):
                with pytest.raises(ValueError, match=f"{argument} must be a number above 0"):
                    getattr(functional, name)(**{**call, argument: temperature})


def test_values_beyond_the_squares_of_float32_are_taken_in_float64() -> None:
    z1, z2 = draw(6, 3), draw(6, 3)
    expected = functional.nt_xent(z1.double(), z2.double(), 0.2)
    for scale in (1e30, 1e-8):
        torch.testing.assert_close(
            functional.nt_xent(z1 * scale, z2 * scale, 0.2).double(), expected, rtol=1e-5, atol=0
        )


def test_sinkhorn_of_scores_whose_exponentials_vanish_still_gives_rows_that_sum_to_one() -> None:
    scores = torch.tensor([[0.0, 1.0, 5.0], [-900.0, -901.0, -902.0], [3.0, 3.0, 3.0]])
    codes = functional.sinkhorn(scores, epsilon=0.05)
    torch.testing.assert_close(codes.sum(1), torch.ones(3))
    logits = scores.double() / 0.05
    for _ in range(3):
        logits = logits - logits.logsumexp(0)
        logits = logits - logits.logsumexp(1, keepdim=True)
    torch.testing.assert_close(codes.double(), logits.exp(), rtol=1e-5, atol=1e-7)


def test_a_row_of_zeros_lies_in_the_middle_of_the_sphere() -> None:
    z = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    squares = [1.0, 1.0, 2.0]  # to the middle twice, and between the two
    expected = math.log(sum(math.exp(-2 * s) for s in squares) / 3)
    assert functional.uniformity(z).item() == pytest.approx(expected, rel=1e-12)


def test_a_training_step_lets_values_pass_that_are_not_finite() -> None:
    z = draw(6, 3)
    z[0, 0] = math.nan
    with trusted_values():
        assert functional.nt_xent(z, z, 0.2).isnan()
    with pytest.raises(ValueError, match="1 of the 18 values of z1"):
        functional.nt_xent(z, z, 0.2)
