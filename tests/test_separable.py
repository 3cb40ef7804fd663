import numpy as np
import scipy.ndimage
import torch

from learnreg.separable import apply_separable, box_matrix, gaussian_matrix


def test_box_is_scipys_uniform_filter_inside():
    values = torch.rand(1, 1, 12, 13, 14, dtype=torch.float64)
    ours = apply_separable(values, [box_matrix(n, 5) for n in values.shape[2:]])[0, 0].numpy()
    theirs = scipy.ndimage.uniform_filter(values[0, 0].numpy(), 5)
    assert np.abs(ours - theirs)[2:-2, 2:-2, 2:-2].max() < 1e-6
    assert torch.allclose(box_matrix(12, 5).sum(1), torch.ones(12))


def test_gaussian_is_scipys_inside_and_keeps_constants():
    values = torch.rand(30, 31, dtype=torch.float64)
    ours = apply_separable(values, [gaussian_matrix(30, 1.5), gaussian_matrix(31, 1.5)]).numpy()
    theirs = scipy.ndimage.gaussian_filter(values.numpy(), 1.5, truncate=8)
    assert np.abs(ours - theirs)[12:-12, 12:-12].max() < 1e-6
    assert torch.allclose(apply_separable(torch.ones(9, 9), [gaussian_matrix(9, 2.0)] * 2), torch.ones(9, 9))


def test_an_axis_can_be_left():
    values = torch.rand(2, 3, 4, 5)
    assert torch.equal(apply_separable(values, [None, None]), values)
    assert apply_separable(values, [torch.ones(7, 4), None]).shape == (2, 3, 7, 5)
