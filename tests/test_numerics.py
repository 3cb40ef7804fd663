import gc
import weakref

import pytest
import torch

from learnreg.numerics import full_precision, remembered


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
