"""The annotations are checked while tests run, and what they say is told from what it is not."""

import pytest
import torch
from beartype.roar import BeartypeCallHintParamViolation
from jaxtyping import TypeCheckError
from torch._subclasses.fake_tensor import FakeTensorMode

from learnreg.fields import channels_last, compose, exponential, jacobian_determinant
from learnreg.grid import Grid, apply_affine
from learnreg.image import Image, label_values
from learnreg.metrics import dice_scores
from learnreg.optimization import DenseParametrization
from learnreg.regularization.diffusion import diffusion_loss
from learnreg.sampling import SeparableMap, sample, sample_labels
from learnreg.similarity import LNCC, MSE
from learnreg.similarity.dice import dice_loss, one_hot
from learnreg.similarity.mse import mse_loss
from learnreg.transforms import Affine, Composite, Displacement, linear_through_landmarks
from learnreg.transforms.affine import homogeneous
from learnreg.warping import warp

GRID = Grid.regular((4, 5, 6))
IMAGE = torch.rand(2, 1, *GRID.shape)
LABELS = torch.ones(2, 1, *GRID.shape, dtype=torch.long)
FIELD = torch.zeros(2, 3, *GRID.shape)
POINTS = torch.zeros(2, 7, 3)

caught = pytest.raises.original  # pytest.raises turns the checks off, see conftest.py

MISTAKES = {
    "an image without a channel": lambda: mse_loss(IMAGE[:, 0], IMAGE),
    "images of two shapes": lambda: mse_loss(IMAGE, IMAGE[..., :5]),
    "images of two batches": lambda: LNCC()(IMAGE[:1], IMAGE),
    "an image of integers": lambda: dice_loss(LABELS, LABELS),
    "a mask of two channels": lambda: MSE()(IMAGE, IMAGE, IMAGE.expand(-1, 2, -1, -1, -1)),
    "a mask of another shape": lambda: MSE()(IMAGE, IMAGE, IMAGE[..., :5]),
    "labels that are not integers": lambda: one_hot(LABELS.float(), [1]),
    "labels without a channel": lambda: dice_scores(LABELS[:, 0], LABELS[:, 0], [1]),
    "labels of two shapes": lambda: dice_scores(LABELS, LABELS[..., :5], [1]),
    "sampled labels that are not integers": lambda: sample_labels(LABELS.float(), GRID, POINTS),
    "labels of an image that are not integers": lambda: Image(IMAGE, GRID, labels=LABELS.float()),
    "values of labels that are not integers": lambda: label_values(LABELS, LABELS.float()),
    "a field that is channel-last": lambda: compose(FIELD, channels_last(FIELD), GRID),
    "fields of two shapes": lambda: compose(FIELD, FIELD[..., :5], GRID),
    "a field of integers": lambda: exponential(FIELD.long(), GRID),
    "a field that is a vector": lambda: jacobian_determinant(FIELD[0, :, 0, 0, 0], GRID),
    "a field that is an image": lambda: diffusion_loss(Image(IMAGE, GRID), GRID),
    "a field in place of a grid": lambda: diffusion_loss(FIELD, FIELD),
    "points of integers": lambda: Affine.identity(3)(POINTS.long()),
    "points of two batches": lambda: sample(IMAGE, GRID, POINTS.repeat(2, 1, 1)[:3]),
    "points in 2-D, a matrix in 3-D": lambda: apply_affine(torch.eye(4)[None], POINTS[..., :2]),
    "a matrix without a batch": lambda: apply_affine(torch.eye(4), POINTS),
    "a matrix of 5 rows": lambda: Affine(torch.eye(5)),
    "a matrix that is not square": lambda: Grid((4, 5, 6), torch.eye(4)[:3]),
    "a matrix in 2-D, a field in 3-D": lambda: SeparableMap(FIELD, (None,) * 3, torch.eye(3)[None]),
    "landmarks that are not in pairs": lambda: linear_through_landmarks(POINTS, POINTS[:, :3]),
    "weights of another shape": lambda: diffusion_loss(FIELD, GRID, IMAGE[..., :5]),
    "weights of integers": lambda: diffusion_loss(FIELD, GRID, LABELS),
    "landmarks without a batch": lambda: Image(IMAGE, GRID, landmarks=POINTS[0]),
    "a list for a grid": lambda: Displacement(FIELD, GRID.shape),
    "an image for a grid": lambda: sample(IMAGE, Image(IMAGE, GRID), POINTS),
    "a tensor for an image": lambda: warp(IMAGE, Affine.identity(3), GRID),
    "tensors for images, without a shape": lambda: DenseParametrization(GRID)(IMAGE, IMAGE),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_found(mistake):
    with caught((TypeCheckError, BeartypeCallHintParamViolation), match="parameter"):
        MISTAKES[mistake]()


def test_what_the_annotations_allow():
    one, points = torch.eye(4)[None], POINTS[:1]
    assert apply_affine(one, POINTS).shape == POINTS.shape  # a batch of 1 on either side
    assert apply_affine(one.expand(2, -1, -1), points).shape == POINTS.shape
    assert sample(IMAGE, GRID, points).shape == (2, 1, 7)
    assert sample(IMAGE[:1], GRID, POINTS).shape == (2, 1, 7)
    assert Affine(torch.eye(3)).ndim == 2  # one matrix or a batch
    assert Affine(torch.eye(3)[None]).ndim == 2
    assert Grid((4, 5, 6), torch.eye(4)).affine.shape == (1, 4, 4)
    assert homogeneous(torch.eye(2)[None], torch.zeros(1, 2)).shape == (1, 3, 3)
    assert label_values(LABELS, LABELS[:1, ..., :3]) == [1]  # each on a grid of its own
    assert mse_loss(IMAGE, IMAGE, LABELS > 0) == 0  # a mask of any type


class Flat(Affine):
    """A user's transform, without annotations and with a mistake."""

    def __call__(self, points):
        return points[..., :2]


def test_a_class_of_a_user_without_annotations_is_left_alone():
    assert Flat(torch.eye(4))(POINTS).shape == (2, 7, 2)


def test_a_wrong_result_is_found():
    with caught(TypeCheckError, match="the return value of learnreg.transforms.composite.Composite.__call__"):
        Composite((Flat(torch.eye(4)),))(POINTS)


def test_a_test_of_an_error_reaches_it():
    with pytest.raises(ValueError, match="Affine.matrix must be"):
        Affine(torch.eye(5))
    with caught(TypeCheckError, match="matrix"):
        Affine(torch.eye(5))


def test_transformed_functions_are_checked():
    """Inside of torch.func a tensor has the shape of one item."""
    determinant = torch.func.vmap(lambda field: jacobian_determinant(field, GRID))(torch.zeros(4, *FIELD.shape))
    assert bool((determinant == 1).all())
    assert torch.func.grad(lambda field: diffusion_loss(field, GRID))(FIELD).shape == FIELD.shape
    with caught(TypeCheckError):
        torch.func.vmap(lambda labels: one_hot(labels, [1]))(torch.zeros(4, *LABELS.shape))


def test_tensors_without_values_are_checked():
    with FakeTensorMode():
        image = torch.rand(2, 1, 4, 5, 6)
        assert mse_loss(image, image).shape == ()
        with caught(TypeCheckError):
            mse_loss(image, image[0])
