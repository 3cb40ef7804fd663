"""Custom autograd functions under ``torch.func``: equal to autograd, or torch says what is missing."""

import pytest
import torch

from learnreg.fields import exponential
from learnreg.grid import Grid
from learnreg.image import Image
from learnreg.networks.pyramid import local_correlation
from learnreg.regularization import diffusion_loss
from learnreg.similarity import lncc_loss, ncc_loss
from learnreg.transforms import Displacement
from learnreg.warping import warp

GRID = Grid.regular((6, 7, 8), dtype=torch.float64)
FIELD = 0.3 * torch.randn(1, 3, 6, 7, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
IMAGE = torch.rand(1, 1, 6, 7, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
COARSE = Displacement(FIELD, GRID).displacement(GRID.resized((4, 4, 4)))


def warped(field):
    return warp(Image(IMAGE, GRID), Displacement(field, GRID.resized((4, 4, 4))), GRID).data.square().sum()


FUNCTIONS = {  # each goes through another custom function
    "sample_displaced": (warped, COARSE),
    "advected, squared": (lambda v: exponential(v, GRID, steps=2).square().sum(), FIELD),
    "products": (lambda w: lncc_loss(w, IMAGE.flip(2), window=3), IMAGE),
    "standardized": (lambda w: ncc_loss(w, IMAGE.flip(2)), IMAGE),
    "squared_gradient": (lambda u: diffusion_loss(u, GRID), FIELD),
    "correlation": (lambda f: local_correlation(f, IMAGE.flip(2), 1).square().sum(), IMAGE),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_func_grad_equals_autograd(name):
    function, point = FUNCTIONS[name]
    at = point.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(function(at), at)
    assert torch.allclose(torch.func.grad(function)(point), wanted, rtol=1e-10, atol=1e-12)
    value, pull_back = torch.func.vjp(function, point)
    assert torch.allclose(pull_back(torch.ones_like(value))[0], wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_is_not_supported_says_so(name):
    function, point = FUNCTIONS[name]
    at = point.clone().requires_grad_()
    (first,) = torch.autograd.grad(function(at), at, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable|does not require grad"):
        first.square().sum().backward()
    with pytest.raises(RuntimeError, match=r"vmap|setup_context|Batching rule|data-dependent"):
        torch.func.vmap(function)(torch.stack([point, point]))
