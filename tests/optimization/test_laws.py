"""What every stage and every parametrization obeys; a public class without an entry fails."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

import learnreg.optimization
from learnreg.fields import image_gradient
from learnreg.grid import Grid
from learnreg.image import stack
from learnreg.objective import Objective, Penalty
from learnreg.optimization import (
    CenterOfMass,
    CenterOfView,
    CompositiveParametrization,
    ConvexStage,
    DemonsStage,
    FieldStage,
    IntensityAndGradient,
    IterativeStage,
    LandmarkStart,
    LargestStep,
    LinearParametrization,
    LinearStage,
    Moments,
    Parametrization,
    RotationSearch,
    SelfSimilarity,
    Stage,
)
from learnreg.optimization.features import masked_gradient
from learnreg.regularization import Diffusion
from learnreg.similarity import NCC
from tests.conftest import blob_image, make_grid
from tests.optimization.test_parametrizations import ALL, randomized

OBJECTIVE = Objective(NCC(), {"diffusion": Penalty(Diffusion(), 0.01)})
LEVELS = {"factors": (2, 1), "iterations": (4, 3), "tolerance": 0.0}
# Adam divides by the size of a gradient: where the gradient is rounding error, so are its steps.
FIELD = partial(FieldStage, OBJECTIVE, optimizer=LargestStep, **LEVELS)
STAGES = {
    "ConvexStage": lambda: ConvexStage(spacing=2, reach=2),
    "ConvexStage, gradients": lambda: ConvexStage(IntensityAndGradient(), spacing=2, reach=2),
    "DemonsStage": lambda: DemonsStage(**LEVELS),
    "FieldStage": FIELD,
    "FieldStage, gradients": lambda: FIELD(features=IntensityAndGradient()),
    "FieldStage, descriptors": lambda: FIELD(features=SelfSimilarity()),
    "FieldStage, cropped": lambda: FIELD(crop=2),
    "FieldStage, compositive": lambda: FIELD(parametrization=CompositiveParametrization),
    "LinearStage": lambda: LinearStage(OBJECTIVE, **LEVELS),
    "CenterOfMass": CenterOfMass,
    "CenterOfView": CenterOfView,
    "LandmarkStart": lambda: LandmarkStart(factor=1, smoothing=1.0),
    "Moments": lambda: Moments(OBJECTIVE, factor=1),
    "RotationSearch": lambda: RotationSearch(OBJECTIVE, factor=1, steps=3),
}
PARAMETRIZATIONS = {
    **ALL,
    **{
        f"linear, {kind}": lambda grid, start, kind=kind: LinearParametrization(grid.center, 20.0, kind)
        for kind in ("translation", "rigid", "similarity", "affine")
    },
}


def public(base):
    found = (getattr(learnreg.optimization, name) for name in learnreg.optimization.__all__)
    return {kind for kind in found if isinstance(kind, type) and issubclass(kind, base)}


def test_every_public_class_has_an_entry():
    assert public(Stage) - {Stage, IterativeStage} == {type(make()) for make in STAGES.values()}
    grid = Grid.regular((8, 8, 8))
    assert public(Parametrization) - {Parametrization} == {type(make(grid, None)) for make in PARAMETRIZATIONS.values()}


def pair(spacing=1.0, shift=1.0):
    """Images with masks and landmarks; the samples of one lie between those of the other, where no gradient jumps."""
    images = []
    for center, origin in (((0.0, 0.0, 0.0), None), ((shift, -1.0, 0.5), (-9.17, -8.23, -7.31))):
        grid = Grid.regular((16, 18, 20), spacing, origin)
        image = blob_image(grid, center, (7.0, 5.0, 4.0))
        mask = (grid.points.norm(dim=-1, keepdim=True).movedim(-1, 1) < 8.5).float()
        marks = torch.tensor(center) + 6 * torch.tensor(
            [[[a, b, c] for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)]]
        )
        images.append(replace(image, mask=mask, landmarks=marks + 0.1 * marks.roll(1, 1).roll(1, 2)))
    return images


def spoiled(image):
    noise = torch.rand(image.data.shape, generator=torch.Generator().manual_seed(0))
    return image.with_data(torch.where(image.mask > 0, image.data, 5 * noise))


@pytest.mark.parametrize("name", STAGES)
class TestStages:
    def found(self, name, images):
        return STAGES[name]()(*images).transform.displacement(images[0].grid)

    def test_a_batch_is_its_members_or_refused(self, name):
        pairs = [pair(), pair((1.2, 1.0, 1.1), 2.0)]
        batch = [stack(images) for images in zip(*pairs, strict=True)]
        for images in (batch, [batch[0], pairs[0][1]], [pairs[0][0], batch[1]]):
            try:
                both = self.found(name, images)
            except ValueError as error:
                assert "one pair" in str(error) and "one by one" in str(error)
                continue
            if images is batch:
                assert torch.allclose(both, torch.cat([self.found(name, one) for one in pairs]), atol=1e-4)

    def test_the_type_of_the_images_is_that_of_the_transform(self, name):
        single, double = (self.found(name, [i.to(kind) for i in pair()]) for kind in (torch.float32, torch.float64))
        assert single.dtype == torch.float32
        assert double.dtype == torch.float64
        assert (single - double).abs().max() < 1e-3  # mm

    @pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
    def test_half_precision_is_right_or_refused(self, name, half):
        images = pair()
        try:
            found = self.found(name, [i.to(half) for i in images])
        except ValueError as error:
            assert "needs images in float32 or float64" in str(error)
        else:
            assert found.dtype == torch.float32
            assert (found - self.found(name, images)).abs().max() < 0.1  # mm

    def test_values_outside_the_mask_of_the_fixed_image_change_nothing(self, name):
        fixed, moving = pair()
        if name == "ConvexStage, gradients":
            pytest.skip("only features that ignore what is outside of a mask, such as descriptors, make it so")
        assert torch.allclose(self.found(name, [spoiled(fixed), moving]), self.found(name, [fixed, moving]), atol=1e-4)


@pytest.mark.parametrize("name", PARAMETRIZATIONS)
def test_a_parametrization_has_the_type_of_its_grid(name):
    grid = make_grid("oblique", shape=(16, 20, 24), spacing=(1.0, 1.5, 1.2))
    double, single = (PARAMETRIZATIONS[name](grid.to(kind), None) for kind in (torch.float64, torch.float32))
    if "linear" in name:
        with torch.no_grad():
            for k, p in enumerate(single.parameters()):
                p.copy_(torch.linspace(-1, 2, p.numel()).reshape(p.shape) + k)
    else:
        randomized(single)
    double.load_state_dict(single.state_dict())
    first, second = single().displacement(grid.to(torch.float32)), double().displacement(grid)
    assert (first.dtype, second.dtype) == (torch.float32, torch.float64)
    assert (first - second).abs().max() < 1e-3  # mm
    assert second.abs().max() > 0.5


def test_a_gradient_within_a_mask():
    """Of a mask of ones it is the plain one; at its border it is numpy's at the border of an image."""
    grid = make_grid("oblique", shape=(6, 9, 8))
    data = torch.rand(2, 2, *grid.shape, dtype=torch.float64)
    ones = torch.ones(2, 1, *grid.shape)
    plain = image_gradient(data, grid)
    assert torch.allclose(masked_gradient(data, grid, ones), plain)
    upright = Grid.regular(grid.shape, (1.0, 2.0, 0.5), dtype=torch.float64)
    box = torch.zeros_like(ones)
    box[:, :, 1:5, 2:7, 3:8] = 1
    found = masked_gradient(data, upright, box)[1, 1, :, 1:5, 2:7, 3:8].numpy()
    expected = np.stack(np.gradient(data[1, 1, 1:5, 2:7, 3:8].numpy(), 0.5, 2.0, 1.0)[::-1])
    assert np.abs(found - expected).max() < 1e-9
    flat = Grid.regular((1, 5, 6), dtype=torch.float64)
    assert torch.equal(
        masked_gradient(data[:, :, :1, :5, :6], flat, ones[:, :, :1, :5, :6])[:, :, 2],
        torch.zeros(2, 2, 1, 5, 6).double(),
    )
