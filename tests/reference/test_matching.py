"""VICRegL's pairs of cells against loops over floats, and what pairs them."""

import math

import pytest
import torch
from slopes import slopes

from selfsup.functional import location_grid, vicreg_loss, vicregl_loss
from selfsup.functional.matching import nearest_cells, spread_penalty

WHOLE = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
MIRRORED = [[-1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]
# no two cells of these are as far from a cell of the others
CORNER = [[0.5, 0.0, 0.45], [0.0, 0.5, 0.2]]
TALL = [[0.3, 0.0, 0.12], [0.0, 0.8, 0.15]]


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def maps_of(*affine, count=3):
    return [torch.tensor(a, dtype=torch.float64).expand(count, 2, 3) for a in affine]


def cells_of(feature_map):
    """A list of vectors an image, cells row by row."""
    count, dim, side, _ = feature_map.shape
    values = feature_map.tolist()
    return [[[values[n][d][y][x] for d in range(dim)] for y in range(side) for x in range(side)] for n in range(count)]


def places_of(affine, side):
    out = []
    for (a, b, c), (d, e, f) in affine.tolist():
        points = [((x + 0.5) / side, (y + 0.5) / side) for y in range(side) for x in range(side)]
        out.append([[a * x + b * y + c, d * x + e * y + f] for x, y in points])
    return out


def pairs(measured, others, most):
    """Of each image the ``most`` cells whose nearest partner is nearest, in order of the cell, and the partner."""
    found = []
    for own, other in zip(measured, others, strict=True):
        nearest = []
        for i, a in enumerate(own):
            distances = [math.dist(a, b) for b in other]
            j = min(range(len(other)), key=distances.__getitem__)
            nearest.append((distances[j], i, j))
        found.append(sorted((i, j) for _, i, j in sorted(nearest)[:most]))
    return found


def spread(columns, weights, eps):
    """Variance and covariance of vectors over the images, for one place."""
    count, dim = len(columns), len(columns[0])
    means = [math.fsum(c[d] for c in columns) / count for d in range(dim)]
    total = 0.0
    for d in range(dim):
        for e in range(dim):
            shared = math.fsum((c[d] - means[d]) * (c[e] - means[e]) for c in columns) / (count - 1)
            total += (
                weights[1] * max(0.0, 1 - math.sqrt(shared + eps)) / dim if d == e else weights[2] * shared**2 / dim
            )
    return total


def loop(maps, affine, matches, weights, eps, chosen=None):
    """The value. ``chosen`` collects the pairs when it is empty, and gives them when it is not."""
    cells = [cells_of(m) for m in maps]
    places = [places_of(a, m.shape[-1]) for a, m in zip(affine, maps, strict=True)]
    fixed = iter(chosen) if chosen else None
    total, kinds = 0.0, 0
    for i in range(2):
        for j in range(len(maps)):
            if i == j:
                continue
            kinds += 1
            for measure, most in ((cells, None), (places, matches)):
                for k, (one, other) in enumerate(((i, j), (j, i))):
                    limit = len(cells[one][0]) if most is None else most[k]
                    paired = next(fixed) if fixed else pairs(measure[one], measure[other], limit)
                    if chosen is not None and fixed is None:
                        chosen.append(paired)
                    count, dim, length = len(paired), len(cells[0][0][0]), len(paired[0])
                    x = [[cells[one][n][a] for a, _ in paired[n]] for n in range(count)]
                    y = [[cells[other][n][b] for _, b in paired[n]] for n in range(count)]
                    apart = math.fsum(
                        (x[n][m][d] - y[n][m][d]) ** 2 for n in range(count) for m in range(length) for d in range(dim)
                    )
                    term = weights[0] * apart / (count * length * dim)
                    for side in (x, y):
                        each = [spread([side[n][m] for n in range(count)], weights, eps) for m in range(length)]
                        term += math.fsum(each) / length / 2
                    total += term / 2
    return total / kinds


@pytest.mark.parametrize(
    ("sides", "affine", "matches"),
    [
        ((2, 2), (WHOLE, TALL), (3, 2)),
        ((2, 2), (WHOLE, CORNER), (4, 9)),  # more matches than cells: all
        ((2, 2, 1), (TALL, MIRRORED, CORNER), (4, 4)),  # a small view, of which there is one cell
    ],
)
def test_vicregl_is_the_loop_in_value_and_gradient(sides, affine, matches):
    weights, eps = (25.0, 25.0, 1.0), 1e-4
    maps = [0.7 * random(3, 2, side, side, seed=n) for n, side in enumerate(sides)]
    to_source = maps_of(*affine)
    leaves = [m.clone().requires_grad_() for m in maps]
    loss = vicregl_loss(leaves, to_source, matches, weights, eps)
    loss.backward()

    chosen = []
    assert loss.item() == pytest.approx(loop(maps, to_source, matches, weights, eps, chosen), rel=1e-9)
    found = slopes(lambda *m: loop(m, to_source, matches, weights, eps, chosen), *maps)
    for leaf, slope in zip(leaves, found, strict=True):
        torch.testing.assert_close(leaf.grad, slope, rtol=1e-6, atol=1e-7)


def test_equal_whole_views_are_vicreg_of_each_cell_twice():
    """Each cell is its own partner by features and by place; VICReg adds up the covariances where this averages."""
    cells = random(6, 3, 2, 2)
    places = maps_of(WHOLE, WHOLE, count=6)
    each = [vicreg_loss(cell, cell, 25.0, 25.0, 0.5).item() for cell in cells.flatten(2).unbind(2)]
    found = vicregl_loss([cells, cells.clone()], places, (4, 4)).item()
    assert found == pytest.approx(2 * math.fsum(each) / 4, rel=1e-9)


def test_cells_that_lie_nearest_are_chosen_and_nothing_else():
    """A quarter view at the right: of the whole image's 16 cells, the 4 that it shows lie on its cells."""
    place = torch.tensor([[0.5, 0.0, 0.5], [0.0, 0.5, 0.0]])
    whole = location_grid(torch.tensor(WHOLE)[None], 4).flatten(1, 2)
    quarter = location_grid(place[None], 2).flatten(1, 2)
    own, partner = nearest_cells(torch.cdist(whole, quarter), 4)
    assert {(o, p) for o, p in zip(own[0].tolist(), partner[0].tolist(), strict=True)} == {
        (2, 0),
        (3, 1),
        (6, 2),
        (7, 3),
    }
    own, _ = nearest_cells(torch.cdist(whole, quarter), 99)
    assert sorted(own[0].tolist()) == list(range(16))


def test_a_mirrored_view_is_paired_where_it_lies_and_not_where_it_stands():
    """The same image mirrored: by place every cell meets itself, and the distance is 0."""
    image = random(5, 3, 2, 2)
    alone = (1.0, 0.0, 0.0)
    mirrored = vicregl_loss([image, image.flip(3)], maps_of(WHOLE, MIRRORED, count=5), (4, 4), alone)
    assert mirrored.item() == pytest.approx(0, abs=1e-15)
    wrong = vicregl_loss([image, image.flip(3)], maps_of(WHOLE, WHOLE, count=5), (4, 4), alone)
    assert wrong.item() > 0.1


def test_the_spread_is_vicreg_s_of_each_place_over_the_images():
    z = random(8, 3, 4)
    each = [vicreg_loss(z[:, m], z[:, m], 0.0, 25.0, 0.5).item() for m in range(3)]
    assert spread_penalty(z).item() == pytest.approx(math.fsum(each) / 3, rel=1e-10)


def test_partners_carry_no_gradient_of_the_choice_and_both_ends_of_a_pair_one_of_the_distance():
    maps = [random(3, 2, 2, 2).requires_grad_(), random(3, 2, 2, 2, seed=1).requires_grad_()]
    vicregl_loss(maps, maps_of(WHOLE, CORNER), (4, 4), (1.0, 0.0, 0.0)).backward()
    assert all(m.grad.abs().sum() > 0 for m in maps)
    torch.testing.assert_close(maps[0].grad.sum((0, 2, 3)), -maps[1].grad.sum((0, 2, 3)))


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_inputs_are_computed_in_float32_under_autocast(half):
    maps = [random(3, 2, 2, 2, dtype=half), random(3, 2, 2, 2, seed=1, dtype=half)]
    places = [place.float() for place in maps_of(WHOLE, CORNER)]
    with torch.autocast("cpu", dtype=half):
        loss = vicregl_loss(maps, places)
    assert loss.dtype == torch.float32
    assert loss.item() == vicregl_loss([m.float() for m in maps], places).item()


@pytest.mark.parametrize(
    "shapes", [[(3, 2, 2, 2)], [(3, 2, 2, 2), (3, 4, 2, 2)], [(1, 2, 2, 2)] * 2, [(3, 2, 2, 3)] * 2]
)
def test_maps_that_do_not_fit_are_refused(shapes):
    with pytest.raises(ValueError, match="maps"):
        vicregl_loss([torch.ones(s) for s in shapes], [torch.tensor(WHOLE).expand(s[0], 2, 3) for s in shapes])
