"""Losses between cells, and which cells match: plain Python loops over floats, closed forms, geometry."""

import math

import pytest
import torch

from selfsup.augment import ViewGenerator, ViewRecipe
from selfsup.functional import dense_info_nce, dense_match, pixcontrast_loss, pixpro_loss, pixpro_mask
from selfsup.types import Normalization

PRECISIONS = [(torch.float64, 1e-11), (torch.float32, 3e-5)]


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_mask(count, size, seed=0):
    """Some matches, none at all in the second image, and cells without one in the others."""
    mask = torch.rand(count, size**2, size**2, generator=torch.Generator().manual_seed(seed)) < 0.3
    mask[:, 0, 0] = True
    mask[1:2] = False
    mask[:, 1:2] = False
    return mask


def dot(a, b):
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def unit(row):
    length = math.sqrt(dot(row, row))
    return [x / length for x in row], length


def cells_of(features):
    """Per image the rows of cells, as lists of floats."""
    _, _, height, width = features.shape
    return [[image[:, r, c].tolist() for r in range(height) for c in range(width)] for image in features]


def maps_of(rows, like):
    """The inverse of cells_of."""
    out = torch.zeros_like(like, dtype=torch.float64)
    width = like.shape[3]
    for b, cells in enumerate(rows):
        for i, cell in enumerate(cells):
            out[b, :, i // width, i % width] = torch.tensor(cell, dtype=torch.float64)
    return out


def from_cosine_gradients(to_cosine, a, b):
    """Gradients of both maps from those of all their cosines."""
    gradients_a, gradients_b = [], []
    for weights, cells_a, cells_b in zip(to_cosine, cells_of(a), cells_of(b), strict=True):
        units_a, units_b = [unit(x) for x in cells_a], [unit(x) for x in cells_b]
        for own, others, flip, out in (
            (units_a, units_b, False, gradients_a),
            (units_b, units_a, True, gradients_b),
        ):
            rows = []
            for i, (u, length) in enumerate(own):
                raw = [0.0] * len(u)
                for j, (v, _) in enumerate(others):
                    weight = weights[j][i] if flip else weights[i][j]
                    raw = [r + weight * x for r, x in zip(raw, v, strict=True)]
                along = dot(raw, u)
                rows.append([(r - along * x) / length for r, x in zip(raw, u, strict=True)])
            out.append(rows)
    return maps_of(gradients_a, a), maps_of(gradients_b, b)


def cosine_table(a, b):
    return [
        [[dot(unit(x)[0], unit(y)[0]) for y in cells_b] for x in cells_a]
        for cells_a, cells_b in zip(cells_of(a), cells_of(b), strict=True)
    ]


def loop_pixpro(prediction, target, mask):
    table, count, total, to_cosine = cosine_table(prediction, target), len(mask), 0.0, []
    for cosines, matches in zip(table, mask.tolist(), strict=True):
        number = sum(map(sum, matches))
        if number:
            chosen = [c for row, m in zip(cosines, matches, strict=True) for c, yes in zip(row, m, strict=True) if yes]
            total += -2 * math.fsum(chosen) / number / count
        to_cosine.append([[-2 / number / count if yes else 0.0 for yes in row] for row in matches])
    return total, *from_cosine_gradients(to_cosine, prediction, target)


def loop_pixcontrast(query, key, mask, temperature):
    table, count, total, to_cosine = cosine_table(query, key), len(mask), 0.0, []
    for cosines, matches in zip(table, mask.tolist(), strict=True):
        with_match = sum(any(row) for row in matches)
        weights = []
        for row, positive in zip(cosines, matches, strict=True):
            if not any(positive):
                weights.append([0.0] * len(row))
                continue
            exponentials = [math.exp(c / temperature) for c in row]
            everything = math.fsum(exponentials)
            wanted = math.fsum(e for e, yes in zip(exponentials, positive, strict=True) if yes)
            share = 1 / (count * with_match)
            total -= share * math.log(wanted / everything)
            weights.append(
                [
                    share * (e / everything - (e / wanted if yes else 0.0)) / temperature
                    for e, yes in zip(exponentials, positive, strict=True)
                ]
            )
        to_cosine.append(weights)
    return total, *from_cosine_gradients(to_cosine, query, key)


def loop_dense_info_nce(query, key, match, negatives, temperature):
    """Value, and the gradients of query and key."""
    stored, total, to_query, to_key = negatives.tolist(), 0.0, [], []
    cells = query.shape[0] * query.shape[2] * query.shape[3]
    for rows_q, rows_k, chosen in zip(cells_of(query), cells_of(key), match.tolist(), strict=True):
        gradients_q, gradients_k = [], [[0.0] * len(rows_k[0]) for _ in rows_k]
        for row, j in zip(rows_q, chosen, strict=True):
            (q, q_length), (k, k_length) = unit(row), unit(rows_k[j])
            candidates = [k, *stored]
            exponentials = [math.exp(dot(q, c) / temperature) for c in candidates]
            everything = math.fsum(exponentials)
            total -= math.log(exponentials[0] / everything) / cells
            weights = [(e / everything - (n == 0)) / temperature / cells for n, e in enumerate(exponentials)]
            raw = [math.fsum(w * c[d] for w, c in zip(weights, candidates, strict=True)) for d in range(len(q))]
            along = dot(raw, q)
            gradients_q.append([(r - along * x) / q_length for r, x in zip(raw, q, strict=True)])
            along = dot(q, k)
            for d in range(len(k)):
                gradients_k[j][d] += weights[0] * (q[d] - along * k[d]) / k_length
        to_query.append(gradients_q)
        to_key.append(gradients_k)
    return total, maps_of(to_query, query), maps_of(to_key, key)


def assert_loop(loss, expected, leaves, dtype, tolerance):
    value, *gradients = expected
    loss.backward()
    assert loss.dtype == dtype
    assert loss.shape == ()
    assert loss.item() == pytest.approx(value, rel=tolerance, abs=tolerance)
    for leaf, gradient in zip(leaves, gradients, strict=True):
        torch.testing.assert_close(leaf.grad.double(), gradient, rtol=10 * tolerance, atol=10 * tolerance)


def leaves_of(a, b, dtype):
    return a.to(dtype).requires_grad_(), b.to(dtype).requires_grad_()


SHAPES = [(1, 3, 2), (2, 4, 2), (3, 5, 3), (4, 2, 1)]


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize(("count", "dim", "size"), SHAPES)
def test_pixpro_loss_is_the_loop(count, dim, size, dtype, tolerance):
    a, b, mask = random(count, dim, size, size), 3 * random(count, dim, size, size, seed=1), random_mask(count, size)
    leaves = leaves_of(a, b, dtype)
    assert_loop(pixpro_loss(*leaves, mask), loop_pixpro(a, b, mask), leaves, dtype, tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("temperature", [0.1, 0.3, 2.0])
@pytest.mark.parametrize(("count", "dim", "size"), SHAPES)
def test_pixcontrast_loss_is_the_loop(count, dim, size, temperature, dtype, tolerance):
    a, b, mask = random(count, dim, size, size), 3 * random(count, dim, size, size, seed=1), random_mask(count, size)
    leaves = leaves_of(a, b, dtype)
    expected = loop_pixcontrast(a, b, mask, temperature)
    assert_loop(pixcontrast_loss(*leaves, mask, temperature), expected, leaves, dtype, tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize(("count", "dim", "size", "stored"), [(1, 3, 2, 4), (3, 4, 3, 1), (2, 5, 1, 7), (2, 2, 2, 0)])
def test_dense_info_nce_is_the_loop(count, dim, size, stored, dtype, tolerance):
    a, b = random(count, dim, size, size), 2 * random(count, dim, size, size, seed=1)
    negatives = 0.7 * random(stored, dim, seed=2)
    match = torch.randint(size**2, (count, size**2), generator=torch.Generator().manual_seed(3))
    leaves = leaves_of(a, b, dtype)
    loss = dense_info_nce(*leaves, match, negatives.to(dtype), 0.2)
    assert_loop(loss, loop_dense_info_nce(a, b, match, negatives, 0.2), leaves, dtype, tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("count", "dim", "size"), SHAPES)
def test_dense_match_is_the_loop(count, dim, size, dtype):
    a, b = random(count, dim, size, size), random(count, dim, size, size, seed=1)
    b = b * random(count, 1, size, size, seed=2).exp()  # lengths must not count
    expected = [[max(range(len(row)), key=row.__getitem__) for row in cosines] for cosines in cosine_table(a, b)]
    found = dense_match(a.to(dtype), b.to(dtype))
    assert found.dtype == torch.int64
    assert found.tolist() == expected


def to_source(box, flip=False):
    """The map of a crop (left, top, right, bottom) of the unit square."""
    left, top, right, bottom = box
    row = [left - right, 0.0, right] if flip else [right - left, 0.0, left]
    return torch.tensor([[row, [0.0, bottom - top, top]]])


@pytest.mark.parametrize("threshold", [0.3, 0.7, 1.5])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_mask_is_the_loop(size, threshold):
    """Centres and bins computed corner by corner from boxes, as the paper draws them."""
    boxes = [(0, 0, 1, 1), (0.1, 0.3, 0.65, 0.8), (0.4, 0.2, 0.9, 0.55), (0.0, 0.0, 0.31, 0.9)]
    cases = [(box, flip) for box in boxes for flip in (False, True)]
    pairs = [(one, other) for one in cases for other in cases]

    def centres(box, flip):
        left, top, right, bottom = box
        if flip:
            left, right = right, left  # the bin's width turns negative
        wide, high = (right - left) / size, (bottom - top) / size
        points = [(left + (c + 0.5) * wide, top + (r + 0.5) * high) for r in range(size) for c in range(size)]
        return points, math.hypot(wide, high)

    views = [torch.cat([to_source(*pair[side]) for pair in pairs]).double() for side in (0, 1)]
    found = pixpro_mask(*views, size, threshold)
    assert found.dtype == torch.bool
    for (one, other), matrix in zip(pairs, found.tolist(), strict=True):
        (points_q, diagonal_q), (points_k, diagonal_k) = centres(*one), centres(*other)
        unit_length = max(diagonal_q, diagonal_k)
        assert matrix == [[math.dist(p, q) / unit_length < threshold for q in points_k] for p in points_q]


WHOLE = (0, 0, 1, 1)


def test_identical_crops_match_cell_by_cell():
    mask = pixpro_mask(to_source(WHOLE), to_source(WHOLE), 7)
    assert torch.equal(mask[0], torch.eye(49, dtype=torch.bool))
    # neighbours are 1/√2 = 0.7071 diagonals away: 49 + 4·42 matches
    assert int(pixpro_mask(to_source(WHOLE), to_source(WHOLE), 7, 0.71).sum()) == 217


def test_a_flipped_view_matches_the_mirrored_columns():
    mask = pixpro_mask(to_source(WHOLE), to_source(WHOLE, flip=True), 7)
    cell = torch.arange(49).view(7, 7)
    assert torch.equal(mask[0], torch.eye(49, dtype=torch.bool)[cell.flip(1).flatten()])


@pytest.mark.parametrize(
    ("one", "other", "count"),
    [
        ((0, 0, 0.5, 1), (0, 0, 0.5, 1), 133),  # narrow cells: left and right neighbours too
        (WHOLE, (0.5, 0.5, 1, 1), 133),
        ((0.5, 0.5, 1, 1), WHOLE, 133),
        ((0, 0, 0.4, 0.4), (0.6, 0.6, 1, 1), 0),
    ],
)
@pytest.mark.parametrize("flip", [False, True])
def test_number_of_matches(one, other, count, flip):
    assert int(pixpro_mask(to_source(one, flip), to_source(other), 7).sum()) == count


def test_whole_image_against_its_top_left_quadrant():
    mask = pixpro_mask(to_source(WHOLE), to_source((0, 0, 0.5, 0.5)), 2)[0]
    assert mask.int().tolist() == [[1, 1, 1, 1], [0, 1, 0, 1], [0, 0, 1, 1], [0, 0, 0, 0]]


def test_a_distance_of_exactly_the_threshold_does_not_match():
    # binary fractions, so no rounding: a diagonal of 1.25, and centres 0.625 apart
    one = torch.tensor([[[0.75, 0.0, 0.0], [0.0, 1.0, 0.0]]])
    other = one + torch.tensor([[0.0, 0.0, 0.625], [0.0, 0.0, 0.0]])
    assert not pixpro_mask(one, other, 1, 0.5).item()
    assert pixpro_mask(one, other, 1, 0.5001).item()


def test_a_rotated_view_keeps_its_diagonal():
    quarter = torch.tensor([[[0.0, -1.0, 1.0], [1.0, 0.0, 0.0]]])
    turned = pixpro_mask(to_source(WHOLE), quarter, 7)[0]
    assert torch.equal(turned.sum(1), torch.ones(49, dtype=torch.long))
    assert torch.equal(turned.sum(0), torch.ones(49, dtype=torch.long))


def test_a_view_without_a_map_matches_nothing():
    assert not pixpro_mask(to_source(WHOLE), torch.full((1, 2, 3), float("nan")), 3).any()


def test_matched_cells_of_real_views_show_nearby_coordinates():
    """A coordinate ramp through the view generator: what cells show decides, not what the map says."""
    height, width, size, side = 48, 80, 7, 56
    x = ((torch.arange(width) + 0.5) / width).expand(height, width)
    y = ((torch.arange(height) + 0.5) / height)[:, None].expand(height, width)
    images = torch.stack([x, y, torch.ones_like(x)]).expand(40, -1, -1, -1)
    recipe = ViewRecipe(scale=(0.1, 1.0), jitter_p=0.0, gray_p=0.0)
    views = ViewGenerator([recipe, recipe], [side, side], Normalization((0.0,), (1.0,)))(images)
    assert set((views[0].to_source[:, 0, 0] * views[1].to_source[:, 0, 0] < 0).tolist()) == {True, False}
    shown = [torch.nn.functional.avg_pool2d(view.image[:, :2], side // size) for view in views]

    def diagonal(seen):
        across = (seen[:, 0, :, 5] - seen[:, 0, :, 1]).abs().mean(1) / 4
        down = (seen[:, 1, 5] - seen[:, 1, 1]).abs().mean(1) / 4
        return torch.hypot(across, down)

    points = [seen.flatten(2).transpose(1, 2) for seen in shown]
    distance = torch.cdist(*points) / torch.maximum(*map(diagonal, shown))[:, None, None]
    mask = pixpro_mask(views[0].to_source, views[1].to_source, size)
    assert mask.any(dim=(1, 2)).float().mean() > 0.5
    assert distance[mask].max() < 0.8
    assert distance[~mask].min() > 0.6


# closed forms


def test_perfect_agreement_is_minus_two_a_direction():
    x = random(3, 5, 7, 7)
    mask = pixpro_mask(to_source(WHOLE), to_source(WHOLE), 7).expand(3, -1, -1)
    assert pixpro_loss(x, 4 * x, mask).item() == pytest.approx(-2, rel=1e-12)
    assert pixpro_loss(x, -x, mask).item() == pytest.approx(2, rel=1e-12)


@pytest.mark.parametrize("loss", [pixpro_loss, lambda a, b, mask: pixcontrast_loss(a, b, mask, 0.3)])
def test_views_without_overlap_add_zero_and_stay_in_the_mean(loss):
    disjoint = pixpro_mask(to_source((0, 0, 0.4, 0.4)), to_source((0.6, 0.6, 1, 1)), 3)
    same = pixpro_mask(to_source(WHOLE), to_source(WHOLE), 3)
    a, b = random(1, 4, 3, 3).requires_grad_(), random(1, 4, 3, 3, seed=1).requires_grad_()
    nothing = loss(a, b, disjoint)
    assert nothing.item() == 0
    for gradient in torch.autograd.grad(nothing, [a, b]):
        assert torch.equal(gradient, torch.zeros_like(gradient))
    alone = loss(a, b, same)
    both = loss(a.expand(2, -1, -1, -1), b.expand(2, -1, -1, -1), torch.cat([disjoint, same]))
    assert both.item() == pytest.approx(alone.item() / 2, rel=1e-12)


@pytest.mark.parametrize("temperature", [0.1, 0.3])
def test_pixcontrast_of_orthonormal_and_of_equal_cells(temperature):
    basis = torch.eye(9, dtype=torch.float64).view(1, 9, 3, 3)
    one_each = torch.eye(9, dtype=torch.bool)[None]
    expected = math.log1p(8 * math.exp(-1 / temperature))
    assert pixcontrast_loss(basis, 2 * basis, one_each, temperature).item() == pytest.approx(expected, rel=1e-12)
    equal = torch.ones(1, 4, 3, 3, dtype=torch.float64)
    assert pixcontrast_loss(equal, equal, one_each, temperature).item() == pytest.approx(math.log(9), rel=1e-12)
    three_each = torch.block_diag(*[torch.ones(3, 3)] * 3).bool()[None]
    assert pixcontrast_loss(equal, equal, three_each, temperature).item() == pytest.approx(math.log(3), rel=1e-12)
    everything = torch.ones(1, 9, 9, dtype=torch.bool)
    a, b = random(1, 4, 3, 3), random(1, 4, 3, 3, seed=1)
    assert pixcontrast_loss(a, b, everything, temperature).item() == pytest.approx(0, abs=1e-12)


def test_a_permuted_key_map_is_matched_cell_by_cell():
    """Matches recover the permutation, all positives are 1, and the loss has its closed form."""
    query = random(3, 6, 4, 4)
    order = torch.stack([torch.randperm(16, generator=torch.Generator().manual_seed(n)) for n in range(3)])
    key = query.flatten(2).gather(2, order[:, None].expand(-1, 6, -1)).view_as(query)
    match = dense_match(query, 5 * key)
    assert torch.equal(match, order.argsort(1))
    lifted_q, lifted_k = (torch.cat([m, torch.zeros_like(m[:, :1])], dim=1) for m in (query, key))
    outside = torch.eye(7, dtype=torch.float64)[6:].repeat(100, 1)  # orthogonal to every cell
    expected = math.log1p(100 * math.exp(-1 / 0.2))
    assert dense_info_nce(lifted_q, lifted_k, match, outside, 0.2).item() == pytest.approx(expected, rel=1e-12)


def test_matching_is_within_an_image():
    query = torch.eye(4, dtype=torch.float64).view(1, 4, 2, 2).repeat(2, 1, 1, 1)
    key = query.clone()
    key[1] = -key[1]  # the best cells of all for the second image are in the first
    key[1, :, 0, 1] = 1.0
    match = dense_match(query, key)
    assert match[0].tolist() == [0, 1, 2, 3]
    assert match[1].tolist() == [1, 1, 1, 1]


def test_matches_carry_no_gradient_and_losses_have_the_right_one():
    a, b = random(2, 3, 2, 2).requires_grad_(), random(2, 3, 2, 2, seed=1).requires_grad_()
    match, mask, negatives = dense_match(a, b), random_mask(2, 2), random(5, 3, seed=2)
    assert not match.requires_grad
    assert torch.autograd.gradcheck(lambda x, y: pixpro_loss(x, y, mask), (a, b))
    assert torch.autograd.gradcheck(lambda x, y: pixcontrast_loss(x, y, mask, 0.3), (a, b))
    assert torch.autograd.gradcheck(lambda x, y: dense_info_nce(x, y, match, negatives, 0.2), (a, b))


# numerics and shapes


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_inputs_are_computed_in_float32_under_autocast(half):
    a, b = random(2, 8, 3, 3).to(half).requires_grad_(), random(2, 8, 3, 3, seed=1).to(half)
    mask, negatives = random_mask(2, 3), random(9, 8, seed=2).float()

    def losses(x, y):
        match = dense_match(x, y)
        nce = dense_info_nce(x, y, match, negatives, 0.2)
        return match, pixpro_loss(x, y, mask), pixcontrast_loss(x, y, mask, 0.3), nce

    with torch.autocast("cpu", dtype=half):
        match, *inside = losses(a, b)
    wide_match, *outside = losses(a.detach().float(), b.float())
    assert torch.equal(match, wide_match)
    for loss, wide in zip(inside, outside, strict=True):
        assert loss.dtype == torch.float32
        assert loss.item() == wide.item()
    sum(inside).backward()
    assert a.grad.isfinite().all()


@pytest.mark.parametrize("temperature", [1e-3, 1e3])
def test_extreme_temperatures_stay_finite(temperature):
    a, b = random(2, 8, 3, 3).float().requires_grad_(), random(2, 8, 3, 3, seed=1).float()
    loss = pixcontrast_loss(a, b, random_mask(2, 3), temperature)
    loss.backward()
    assert loss.isfinite()
    assert a.grad.isfinite().all()


def test_shapes_that_do_not_fit_are_refused():
    maps, other = torch.ones(2, 3, 2, 2), torch.ones(2, 4, 2, 2)
    mask, match = torch.ones(2, 4, 4, dtype=torch.bool), torch.zeros(2, 4, dtype=torch.long)
    for call in (
        lambda: dense_match(maps, other),
        lambda: dense_match(maps[0], maps[0]),
        lambda: pixpro_loss(maps, other, mask),
        lambda: pixpro_loss(maps, maps, mask[:1]),
        lambda: pixcontrast_loss(maps, maps, mask[:, :1], 0.3),
        lambda: dense_info_nce(maps, maps, match[:, :2], torch.ones(5, 3), 0.2),
        lambda: dense_info_nce(maps, other, match, torch.ones(5, 3), 0.2),
    ):
        with pytest.raises(ValueError, match=r"dense_|pixpro|pixcontrast"):
            call()
