"""Each kernel equals its reference: value and gradient, borders, masks, batches, threads, any memory layout."""

import contextlib
import threading
from functools import partial
from unittest import mock

import pytest
import torch

import learnreg
from learnreg.fields import compose, exponential, jacobian_determinant
from learnreg.grid import Grid
from learnreg.interpolation import sample_displaced
from learnreg.kernels import compiled
from learnreg.regularization import bending_loss, diffusion_loss, folding_loss, log_jacobian_loss
from learnreg.sampling import sample
from learnreg.search import coupled_search, matching_costs
from learnreg.separable import resize_matrix
from learnreg.similarity import lncc_loss, mind_loss, mutual_information_loss, ncc_loss, ssim_loss
from learnreg.similarity.windows import LocalAverage
from learnreg.transforms import BSpline, Displacement, spline_lattice

SHAPES = pytest.mark.parametrize("shape", [(11, 14, 13), (17, 12)], ids=["3-D", "2-D"])
BATCHES = pytest.mark.parametrize("batch", [1, 2])


def numbers(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def strided(values):
    """The same values in another memory layout."""
    return values.mT.contiguous().mT


@contextlib.contextmanager
def threads(count):
    """Divide also small volumes among threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with mock.patch.object(compiled, "FEW", 1):
            yield
    finally:
        torch.set_num_threads(before)


def value_and_gradients(function, points):
    leaves = [point.clone().requires_grad_() for point in points]
    value = function(*leaves)
    weights = numbers(*value.shape, seed=9)
    return [value.detach(), *torch.autograd.grad((value * weights).sum(), leaves)]


def equal_to_reference(function, *points, tolerance=1e-5):
    """The kernel, on one thread and several, and with strided memory, against plain PyTorch."""
    with mock.patch.object(compiled, "available", lambda: False):
        wanted = value_and_gradients(function, points)
    for count in (1, 3):
        with threads(count):
            found = value_and_gradients(function, points)
            again = value_and_gradients(function, points)
            other = value_and_gradients(function, [strided(point) for point in points])
        for value, same, near, aim in zip(found, again, other, wanted, strict=True):
            assert torch.equal(value, same)
            assert float((value - aim).abs().max()) <= tolerance * float(aim.abs().max())
            assert float((near - aim).abs().max()) <= tolerance * float(aim.abs().max())


@SHAPES
@BATCHES
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("lattice", ["coarser", "same"])
def test_sampling(shape, batch, zeros, lattice):
    ndim = len(shape)
    size = [n // 2 + 1 if lattice == "coarser" else n for n in shape]
    matrices = [None if n == m else resize_matrix(n, m) for n, m in zip(size, shape, strict=True)]
    base = Grid.regular(shape).index_normalizing
    linear = 0.9 * torch.eye(ndim) + 0.1 * numbers(1, ndim, ndim, seed=3)
    values = numbers(batch, 2, *[n + 2 for n in shape])
    field = 1.2 * numbers(1, ndim, *size, seed=1) - 0.6  # some points lie outside
    equal_to_reference(
        lambda v, u: sample_displaced(v, u, base, shape, linear=linear, matrices=matrices, zeros=zeros), values, field
    )


@SHAPES
def test_sampling_of_a_batch_of_fields_and_maps(shape):
    ndim = len(shape)
    base = torch.cat([Grid.regular(shape).index_normalizing, 0.8 * Grid.regular(shape).index_normalizing])
    linear = numbers(2, ndim, ndim)
    equal_to_reference(
        lambda v, u: sample_displaced(v, u, base, shape, linear=linear), numbers(1, 1, *shape), numbers(2, ndim, *shape)
    )


@SHAPES
def test_nearest_neighbors(shape):
    field = 0.6 * numbers(1, len(shape), *shape) - 0.3
    base = Grid.regular(shape).index_normalizing
    equal_to_reference(
        lambda v: sample_displaced(v, field, base, shape, mode="nearest", zeros=True), numbers(1, 1, *shape)
    )


@pytest.mark.parametrize("order", [1, 2, 3])
def test_an_image_through_a_spline(order):
    grid = Grid.regular((13, 12, 14), spacing=(2.0, 1.0, 1.5))
    lattice = spline_lattice(grid, 4.0, order=order)
    image = numbers(1, 1, *grid.shape)

    def warped(coefficients):
        return learnreg.warp(learnreg.Image(image, grid), BSpline(coefficients, lattice, order), grid).data

    equal_to_reference(warped, numbers(1, 3, *lattice.shape, seed=1))


@SHAPES
@pytest.mark.parametrize("padding", ["zeros", "border"])
@pytest.mark.parametrize("mode", ["linear", "nearest"])
@pytest.mark.parametrize(("images", "points"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_sampling_at_points(shape, padding, mode, images, points):
    """Some points lie outside, and one is unknown; plain PyTorch computes what has a gradient."""
    ndim = len(shape)
    affine = torch.eye(ndim + 1).repeat(images, 1, 1)
    affine[:, :ndim] += 0.1 * numbers(images, ndim, ndim + 1, seed=2)
    grid = Grid(shape, affine)
    values = numbers(images, 3, *shape)
    where = 1.2 * max(shape) * numbers(points, 7, 9, ndim, seed=1) - 1
    where[0, 0, 0] = torch.nan
    wanted = sample(values.requires_grad_(), grid, where, mode=mode, padding=padding).detach()
    values = values.detach()
    assert wanted.shape == (max(images, points), 3, 7, 9)
    for count in (1, 3):
        with threads(count):
            for v, p in ((values, where), (strided(values), strided(where))):
                found = sample(v, grid, p, mode=mode, padding=padding)
                assert torch.allclose(found, wanted, rtol=1e-5, atol=2e-5, equal_nan=True)
    assert float((wanted == 0).float().mean()) < 0.8


@pytest.mark.parametrize("size", [(1, 9, 8), (9, 1, 8), (9, 8, 1), (1, 1, 1)])
def test_an_axis_of_one_sample(size):
    base = Grid.regular((5, 6, 7)).index_normalizing
    field = 0.4 * numbers(1, 3, 5, 6, 7) - 0.2
    equal_to_reference(lambda v: sample_displaced(v, field, base, (5, 6, 7)), numbers(1, 1, *size))


def test_a_point_that_is_unknown_or_far_away():
    values, field = numbers(1, 1, 6, 6, 6), torch.zeros(1, 3, 6, 6, 6)
    field[0, :, 1, 1, 1], field[0, 0, 2, 2, 2], field[0, 1, 3, 3, 3] = torch.nan, 1e30, -1e30
    base = Grid.regular((6, 6, 6)).index_normalizing
    for zeros in (False, True):
        found = sample_displaced(values, field, base, (6, 6, 6), zeros=zeros)
        with mock.patch.object(compiled, "available", lambda: False):
            wanted = sample_displaced(values, field, base, (6, 6, 6), zeros=zeros)
        assert torch.allclose(found, wanted, equal_nan=True, atol=1e-6)
        assert int(found.isnan().sum()) == 1


@SHAPES
@BATCHES
def test_composition_and_exponential(shape, batch):
    grid = Grid.regular(shape, spacing=(1.0, 2.0, 1.5)[: len(shape)])
    fields = [2 * numbers(batch, len(shape), *shape, seed=seed) - 1 for seed in (0, 1)]
    equal_to_reference(lambda a, b: compose(a, b, grid), *fields)
    equal_to_reference(lambda v: exponential(v, grid, steps=2), fields[0])


@pytest.mark.parametrize(
    "shape", [(6, 9, 8), (1, 9, 8), (6, 1, 8), (6, 9, 1), (2, 2, 2), (1, 1, 1), (9, 8), (1, 8), (9, 1)]
)
@pytest.mark.parametrize("steps", [0, 3])
def test_an_exponential_on_an_oblique_grid_that_moves_points_out_of_it(shape, steps):
    ndim = len(shape)
    affine = torch.eye(ndim + 1)[None]
    affine[:, :ndim, :ndim] += 0.3 * numbers(1, ndim, ndim, seed=5)
    equal_to_reference(lambda v: exponential(v, Grid(shape, affine), steps=steps), 6 * numbers(2, ndim, *shape) - 3)


@SHAPES
@BATCHES
@pytest.mark.parametrize(("window", "stride"), [(3, 1), (7, 2), (5, 3), (3, 5), (15, 1)])
@pytest.mark.parametrize("masked", [False, True])
def test_windows(shape, batch, window, stride, masked):
    images = [numbers(batch, 2, *shape, seed=seed) + 3 for seed in (0, 1)]
    mask = (numbers(batch, 1, *shape, seed=2) > 0.3).float() if masked else None

    def products(x, y):
        average = LocalAverage(x, window, mask, stride=stride)
        return torch.cat([*average.products(x, y), *average.products(x, y, standardizing=True)], 1)

    equal_to_reference(products, *images)
    equal_to_reference(lambda w, f: lncc_loss(w, f, mask, window=window, stride=stride), *images)


@SHAPES
@BATCHES
@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize(("masked", "window"), [(True, 5), (False, 3)])  # the variance of one voxel is rounding error
def test_correlations_with_a_known_image(shape, batch, squared, masked, window):
    images = [numbers(batch, 2, *shape, seed=seed) + 3 for seed in (0, 1)]
    mask = (numbers(batch, 1, *shape, seed=2) > 0.3).float() if masked else None
    for fixed in (images[1],) if masked else (images[1], images[1][:1]):
        for stride in (1, 2):
            settings = {"window": window, "stride": stride, "squared": squared}
            equal_to_reference(lambda w, f=fixed, s=settings: lncc_loss(w, f, mask, **s), images[0])


@SHAPES
@pytest.mark.parametrize("masked", [False, True])
def test_other_similarities_of_windows_and_moments(shape, masked):
    images = [numbers(1, 1, *shape, seed=seed) for seed in (0, 1)]
    mask = (numbers(1, 1, *shape, seed=2) > 0.3).float() if masked else None
    equal_to_reference(lambda w: ssim_loss(w, images[1], mask), images[0])
    equal_to_reference(lambda w: ncc_loss(w, images[1], mask), images[0])


def test_moments_of_a_large_offset():
    values = numbers(1, 1, 20, 20, 20) + 1e5
    found = learnreg.similarity.masking.standardized(values, None).double()
    exact = values.double()
    wanted = (exact - exact.mean()) / exact.std(correction=0)
    assert float((found - wanted).abs().max()) < 0.02  # 1e5 has float32 neighbors 0.008 apart, 0.03 deviations


@pytest.mark.parametrize("shape", [(7, 9, 8), (1, 9, 8), (7, 1, 8), (7, 9, 1), (7, 9, 2), (9, 8)])
@BATCHES
def test_jacobian_determinants(shape, batch):
    ndim = len(shape)
    affine = torch.eye(ndim + 1).repeat(batch, 1, 1)
    affine[:, :ndim, :ndim] += 0.3 * numbers(batch, ndim, ndim)
    grid, field = Grid(shape, affine), 2 * numbers(batch, ndim, *shape)
    with mock.patch.object(compiled, "available", lambda: False):
        wanted = jacobian_determinant(field, grid)
    for count in (1, 3):
        with threads(count):
            for layout in (field, strided(field)):
                found = jacobian_determinant(layout, grid)
                assert float((found - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max())


def test_inside_of_torch_func():
    grid = Grid.regular((6, 7, 8))
    image, field = numbers(1, 1, 6, 7, 8), numbers(1, 3, 6, 7, 8, seed=1)

    def loss(u):
        warped = learnreg.warp(learnreg.Image(image, grid), Displacement(u, grid), grid).data
        return lncc_loss(warped, image.flip(2), window=3)

    at = field.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(loss(at), at)
    assert torch.equal(torch.func.grad(loss)(field), wanted)


def register():
    grid = Grid.regular((40, 40, 40))
    fixed, moving = (
        learnreg.Image(torch.exp(-(grid.points - s).square().sum(-1) / 90)[:, None], grid) for s in (0.0, 3.0)
    )
    result = learnreg.register(fixed, moving, method="fast", progress=False)
    return result.transform.displacement(grid)


@pytest.mark.slow
def test_two_registrations_at_once_are_those_of_one_after_another():
    with threads(2):
        alone = register()
        found = {}
        running = [threading.Thread(target=lambda k=k: found.__setitem__(k, register())) for k in range(2)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
    assert sorted(found) == [0, 1]
    assert torch.equal(found[0], alone)
    assert torch.equal(found[1], alone)


@SHAPES
def test_matching_costs(shape):
    fixed, moving = numbers(1, 5, *shape), numbers(1, 5, *shape, seed=1)
    with mock.patch.object(compiled, "available", lambda: False):
        wanted = matching_costs(fixed, moving, 2)
    for count in (1, 3):
        with threads(count):
            for a, b in ((fixed, moving), (strided(fixed), strided(moving))):
                assert torch.allclose(matching_costs(a, b, 2), wanted, rtol=1e-5, atol=1e-6)


@SHAPES
def test_a_soft_search(shape):
    fixed, moving = numbers(1, 5, *shape), numbers(1, 5, *shape, seed=1)
    search = partial(coupled_search, fixed, moving, Grid.regular(shape), reach=2, couplings=(0.1, 1.0), softness=0.5)
    with mock.patch.object(compiled, "available", lambda: False):
        wanted = search()
    for count in (1, 3):
        with threads(count):
            assert torch.allclose(search(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(6, 9, 8), (1, 9, 8), (6, 1, 8), (6, 9, 1), (2, 2, 2), (4, 3, 3), (9, 8), (1, 8)])
@BATCHES
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    "loss",
    [diffusion_loss, bending_loss, folding_loss, partial(folding_loss, margin=1.1), log_jacobian_loss],
    ids=range(5),
)
def test_penalties(shape, batch, weighted, loss):
    ndim = len(shape)
    affine = torch.diag(torch.tensor([1.0, 2.0, 1.5, 1.0])[-ndim - 1 :]).repeat(batch, 1, 1)
    affine[-1, :ndim, :ndim] *= 1.3
    weight = strided(numbers(batch, 1, *shape, seed=1)) if weighted else None
    # of two samples per axis, the bending energy has no gradient
    equal_to_reference(lambda u: loss(u, Grid(shape, affine), weight) + 0 * u.sum(), numbers(batch, ndim, *shape))


@SHAPES
@BATCHES
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("orders", [(3, 1), (3, 0), (1, 3)])
def test_mutual_information(shape, batch, masked, orders):
    fixed = numbers(batch, 2, *shape)
    images = [(fixed - 0.5) ** 2 + 0.1 * numbers(batch, 2, *shape, seed=1), fixed]  # much in common: little is rounded
    images[0][:, 0, :2] = images[0].min()  # several voxels share the bound
    mask = (numbers(batch, 1, *shape, seed=2) > 0.3) * numbers(batch, 1, *shape, seed=3) if masked else None
    for fixed in (images[1],) if masked else (images[1], images[1][:1]):
        equal_to_reference(lambda w, f=fixed: mutual_information_loss(w, f, mask, orders=orders, bins=12), images[0])
    equal_to_reference(lambda w: mutual_information_loss(w, images[1], mask, samples=50, normalized=True), images[0])


def test_mutual_information_with_a_constant_image():
    constant, other = torch.full((1, 1, 6, 7, 8), 2.0), numbers(1, 1, 6, 7, 8)
    image = constant.clone().requires_grad_()
    loss = mutual_information_loss(image, other)
    loss.backward()
    assert abs(loss.item()) < 1e-6
    assert float(image.grad.abs().max()) < 1e-9


@pytest.mark.parametrize("shape", [(6, 9, 8), (1, 9, 8), (3, 2, 4), (9, 8)])
@BATCHES
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("radius", "dilation"), [(1, 2), (2, 1)])
def test_mind(shape, batch, masked, radius, dilation):
    images = [numbers(batch, 2, *shape, seed=seed) for seed in (0, 1)]
    mask = strided((numbers(batch, 1, *shape, seed=2) > 0.2).float()) if masked else None
    equal_to_reference(lambda w: mind_loss(w, images[1], mask, radius=radius, dilation=dilation), images[0])


@pytest.mark.parametrize("shape", [(9, 10, 16), (12, 16)])
def test_mind_where_patches_are_flat(shape):
    """All distances are the least, and lie below the smallest typical one."""
    images = [numbers(2, 1, *shape, seed=seed) for seed in (0, 1)]
    images[0][..., :9] = 0.5
    equal_to_reference(lambda w: mind_loss(w, images[1]), images[0])
