import pytest
import torch

from learnreg.numerics import FullPrecisionOfSmall, full_precision


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
        with FullPrecisionOfSmall():
            answer = layer(small)
            assert layer(torch.randn(1, 4, *[6] * axes)).dtype == torch.bfloat16
            assert torch.nn.functional.relu(layer(input=small)).dtype == torch.float32
    assert answer.dtype == torch.float32
    (found,) = torch.autograd.grad(answer.square().sum(), layer.weight)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    without = layer(small)
    with FullPrecisionOfSmall():
        assert torch.equal(layer(small), without)
