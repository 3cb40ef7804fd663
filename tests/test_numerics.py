import pytest
import torch

from learnreg.numerics import SmallConvolutions, full_precision


def test_full_precision():
    @full_precision
    def product(a, b, *, c=None):
        assert not torch.is_autocast_enabled("cpu")
        return a @ b

    a = torch.rand(4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert product(a, a).dtype == torch.float32
        assert product(a.bfloat16(), a.half(), c=3).dtype == torch.float32
    assert product(a.double(), a.double()).dtype == torch.float64


@pytest.mark.parametrize("kind", [torch.nn.Conv2d, torch.nn.Conv3d, torch.nn.ConvTranspose2d, torch.nn.ConvTranspose3d])
def test_autocast_leaves_out_convolutions_of_images_smaller_than_their_kernel(kind):
    torch.manual_seed(0)
    layer, axes = kind(4, 5, 3, padding=1), 3 if "3d" in kind.__name__ else 2
    small = torch.randn(1, 4, 2, *[6] * (axes - 1))
    (expected,) = torch.autograd.grad(layer(small).square().sum(), layer.weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(small).dtype == torch.bfloat16
        with SmallConvolutions():
            answer = layer(small)
            assert layer(torch.randn(1, 4, *[6] * axes)).dtype == torch.bfloat16
            assert torch.nn.functional.relu(layer(input=small)).dtype == torch.float32
    assert answer.dtype == torch.float32
    (found,) = torch.autograd.grad(answer.square().sum(), layer.weight)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    without = layer(small)
    with SmallConvolutions():
        assert torch.allclose(layer(small), without, atol=1e-6)


@pytest.mark.parametrize("shape", [(8, 10, 12), (3, 4, 3), (1, 9, 9), (2, 5, 7)])
@pytest.mark.parametrize("settings", [{}, {"padding": 1}, {"padding": (0, 1, 2)}, {"padding": 1, "bias": False}])
def test_a_single_small_volume_is_convolved_as_by_torch(shape, settings):
    torch.manual_seed(0)
    if shape[0] < 3 and settings.get("padding", 0) != 1:
        shape = (3, *shape[1:])
    layer, values = torch.nn.Conv3d(4, 5, 3, **settings).double(), torch.randn(1, 4, *shape, requires_grad=True)
    expected = layer(values.double())
    gradients = torch.autograd.grad(expected.square().sum(), [values, *layer.parameters()])
    layer = layer.float()
    with SmallConvolutions():
        found = layer(values)
    assert found.shape == expected.shape
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    others = torch.autograd.grad(found.square().sum(), [values, *layer.parameters()])
    for one, other in zip(others, gradients, strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=1e-4, atol=1e-4)


def test_other_convolutions_are_left_unchanged():
    torch.manual_seed(0)
    for options in ({"stride": 2}, {"dilation": 2, "padding": 2}, {"groups": 2}, {"padding": "same"}):
        layer = torch.nn.Conv3d(4, 4, 3, **options)
        for batch in (1, 2):
            values = torch.randn(batch, 4, 8, 8, 8)
            with SmallConvolutions():
                found = layer(values)
            assert torch.equal(found, layer(values))
