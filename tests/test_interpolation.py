"""Slab by slab is the same as all at once, with its gradients."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import learnreg.interpolation
import learnreg.separable
from learnreg.fields import compose
from learnreg.grid import Grid
from learnreg.interpolation import interpolate, sample_displaced, squared
from learnreg.regularization import diffusion_loss
from learnreg.separable import apply_separable, resize_matrix
from learnreg.similarity import lncc_loss


@pytest.fixture(params=[64, 10**9], ids=["slabs", "whole"])
def slab(request, monkeypatch):
    monkeypatch.setitem(learnreg.separable.SLAB, "cpu", request.param)


def numbers(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("shape", [(9, 8, 7), (11, 6)], ids=["3-D", "2-D"])
def test_values_and_gradients_are_those_of_grid_sample(slab, batch, shape):
    ndim = len(shape)
    values = numbers(1, 2, *[n + 1 for n in shape]).requires_grad_()
    lattice = [n // 2 + 1 for n in shape]
    field = (0.4 * numbers(batch, ndim, *lattice, seed=1)).requires_grad_()
    matrices = [resize_matrix(n, m, values) for n, m in zip(lattice, shape, strict=True)]
    grid = Grid.regular(shape, dtype=torch.float64)
    linear = 0.8 * torch.eye(ndim, dtype=torch.float64)[None] + 0.1

    ours = sample_displaced(values, field, grid.index_normalizing, shape, linear=linear, matrices=matrices)
    moved = apply_separable(field, matrices).movedim(1, -1) @ linear[0].T + grid.to_normalized(grid.points)
    theirs = F.grid_sample(values.expand(batch, *values.shape[1:]), moved, padding_mode="border", align_corners=False)
    assert torch.allclose(ours, theirs, atol=1e-12)
    weights = numbers(*ours.shape, seed=2)
    for a, b in zip(*(torch.autograd.grad((w * weights).sum(), (values, field)) for w in (ours, theirs)), strict=True):
        assert torch.allclose(a, b, atol=1e-10)


def test_what_lies_outside_is_zero_and_has_no_gradient(slab):
    values, grid = numbers(1, 1, 6, 6, 6), Grid.regular((6, 6, 6), dtype=torch.float64)
    field = torch.zeros(1, 3, 6, 6, 6, dtype=torch.float64)
    field[:, 0, :, :, :3] = -2.0
    field.requires_grad_()
    sampled = sample_displaced(values, field, grid.index_normalizing, grid.shape, zeros=True)
    assert torch.equal(sampled[..., :3], torch.zeros(1, 1, 6, 6, 3, dtype=torch.float64))
    assert torch.allclose(sampled[..., 3:], values[..., 3:])
    sampled.sum().backward()
    assert field.grad[..., :3].abs().max() == 0 < field.grad[..., 3:].abs().max()


def test_a_square_is_a_composition(slab):
    grid = Grid.regular((7, 8, 9), spacing=(2.0, 1.0, 1.5), dtype=torch.float64)
    field = numbers(2, 3, *grid.shape) - 0.5
    normalized = field * (2 / grid.extent[0]).reshape(1, 3, 1, 1, 1)
    ours = squared(normalized, grid.index_normalizing) / (2 / grid.extent[0]).reshape(1, 3, 1, 1, 1)
    assert torch.allclose(ours, compose(field, field, grid), atol=1e-10)


@pytest.mark.slow
def test_gradients_are_those_of_finite_differences(slab):
    grid = Grid.regular((4, 5, 4), dtype=torch.float64)
    field = (0.2 * numbers(1, 3, 4, 5, 4) - 0.1).requires_grad_()
    torch.autograd.gradcheck(lambda u: squared(u, grid.index_normalizing), field, eps=1e-7, atol=1e-5)
    torch.autograd.gradcheck(lambda u: diffusion_loss(u, grid), field)
    weight = numbers(1, 1, 4, 5, 4, seed=3)
    torch.autograd.gradcheck(lambda u: diffusion_loss(u, grid, weight), field)
    images = [numbers(1, 2, 5, 6, 7, seed=s).requires_grad_() for s in (4, 5)]
    for mask in (None, (numbers(1, 1, 5, 6, 7, seed=6) > 0.2).double()):
        torch.autograd.gradcheck(lambda a, b, m=mask: lncc_loss(a, b, m, window=3, stride=2), images)


@pytest.mark.parametrize("threads", [2, 3, 16])
@pytest.mark.parametrize("shape", [(109, 13, 17), (127, 12, 12), (108, 16, 10), (31, 29, 23)])
def test_any_depth_is_cut_over_the_threads(shape, threads, monkeypatch):
    """Prime sizes too, with the values and gradients of the whole."""
    values, points = (
        numbers(1, 2, 9, 8, 7).requires_grad_(),
        (2.4 * numbers(1, *shape, 3, seed=1) - 1.2).requires_grad_(),
    )
    whole = F.grid_sample(values, points, padding_mode="border", align_corners=False)
    outer = numbers(*whole.shape, seed=2)
    wanted = torch.autograd.grad((whole * outer).sum(), (values, points))
    batches = []

    def seen(values, points, **kwargs):
        batches.append(len(points))
        return F.grid_sample(values, points, **kwargs)

    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(learnreg.interpolation, "F", SimpleNamespace(grid_sample=seen, pad=F.pad))
    cut = interpolate(values, points)
    assert torch.equal(cut, whole)
    found = torch.autograd.grad((cut * outer).sum(), (values, points))
    assert batches == [threads]
    assert torch.allclose(found[0], wanted[0], atol=1e-12)
    assert torch.equal(found[1], wanted[1])


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("separable", [False, True])
def test_a_nan_coordinate_gives_nan_and_no_crash(ndim, separable):
    """torch's own 2-D sampler ends the process in the backward pass."""
    grid = learnreg.Grid.regular([12] * ndim)
    image = learnreg.Image(torch.rand(1, 1, *grid.shape), grid)
    field = torch.zeros(1, ndim, *grid.shape)
    field[(0, 0, *[3] * ndim)] = torch.nan
    field.requires_grad_()
    transform = learnreg.Displacement(field, grid)
    if separable:
        warped = learnreg.warp(image, transform, grid).data
    else:
        warped = learnreg.sampling.sample(image.data, grid, transform.map_grid(grid))
    assert int(warped.isnan().sum()) == 1
    assert bool(warped[(0, 0, *[3] * ndim)].isnan())
    warped.square().sum().backward()
    velocity = learnreg.Velocity(field.detach().clone().requires_grad_(), grid)
    learnreg.warp(image, velocity, grid).data.sum().backward()
    assert bool(velocity.field.grad.isnan().any())


@pytest.mark.parametrize("ndim", [2, 3])
def test_nearest_neighbors_have_the_gradient_of_torch(ndim):
    grid = learnreg.Grid.regular([9] * ndim)
    values = torch.rand(1, 1, *grid.shape, requires_grad=True)
    field = torch.rand(1, ndim, *grid.shape, requires_grad=True)
    warped = learnreg.warp(learnreg.Image(values, grid), learnreg.Displacement(field, grid), grid, mode="nearest")
    weights = torch.rand(warped.data.shape)
    ours = torch.autograd.grad((warped.data * weights).sum(), (values, field))
    coordinates = grid.to_normalized(grid.points + field.movedim(1, -1))
    theirs = torch.nn.functional.grid_sample(values, coordinates, mode="nearest", align_corners=False)
    expected = torch.autograd.grad((theirs * weights).sum(), values)[0]
    assert torch.allclose(ours[0], expected, atol=1e-6)
    assert float(ours[1].abs().max()) == 0
