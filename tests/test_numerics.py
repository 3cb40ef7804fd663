import gc
import weakref

import pytest
import torch

from learnreg.numerics import FullPrecisionOfSmall, full_precision, remembered


@pytest.fixture
def counted():
    calls = []

    @remembered
    def doubled(x, factor=2):
        calls.append(factor)
        return x * factor

    return doubled, calls


def test_the_same_unchanged_tensor_is_computed_once(counted):
    doubled, calls = counted
    x = torch.ones(3)
    assert doubled(x) is doubled(x)
    assert calls == [2]
    assert doubled(x, factor=3).tolist() == [3, 3, 3]
    assert doubled(x.clone()).tolist() == [2, 2, 2]
    x.add_(1)
    assert doubled(x).tolist() == [4, 4, 4]
    assert calls == [2, 3, 2, 2]


def test_gradients_and_inference_mode_are_never_kept(counted):
    doubled, calls = counted
    x = torch.ones(3, requires_grad=True)
    doubled(x).sum().backward()
    doubled(x).sum().backward()
    with torch.inference_mode():
        y = torch.ones(3)
        assert doubled(y) is not doubled(y)
    assert len(calls) == 4


def test_what_is_kept_goes_with_its_tensor(counted):
    doubled, _ = counted
    x = torch.ones(3)
    result = weakref.ref(doubled(x))
    assert result() is not None
    del x
    gc.collect()
    assert result() is None


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
