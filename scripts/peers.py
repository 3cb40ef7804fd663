"""Other people's tools, called as they are meant to be: what the benchmarks compare with.

Each is optional (``pip install -e '.[peers]'``); what is not installed is left out with a note.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, reduce
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
import torch.nn.functional as F

from learnreg.data.preprocessing import normalized
from learnreg.fields import compose, exponential
from learnreg.grid import Grid
from learnreg.image import Image
from learnreg.io import to_sitk, write_image
from learnreg.methods import Method, Registration
from learnreg.networks.units import voxels_to_mm
from learnreg.transforms import Displacement, Transform, chain
from learnreg.transforms.files import read_transform
from learnreg.transforms.itk import from_itk

Piece = Callable[[], torch.Tensor]
Integrator = Callable[[torch.Tensor], torch.Tensor]


class Greedy(Method):
    """``picsl-greedy``: affine, then its compositive solver with NCC 2x2x2.

    Args:
        iterations: Of the deformable stage, one number per level.
        sigmas: Gaussian smoothing of the update and of the field.
        threads: CPU threads.
    """

    def __init__(self, iterations: str, sigmas: str, threads: int) -> None:
        super().__init__()
        self.settings = f"-n {iterations} -s {sigmas}"
        self.threads = threads

    def forward(self, fixed: Image, moving: Image, **kwargs: object) -> Registration:
        from picsl_greedy import Greedy3D

        with tempfile.TemporaryDirectory() as folder:
            names = {name: str(Path(folder) / name) for name in ("f.nii", "m.nii", "w.nii", "c.nii", "a.mat")}
            for name, image in (("f.nii", fixed), ("m.nii", moving)):
                scaled = normalized(image)
                write_image(1000 * scaled.data[0], scaled.grid, names[name])
            pair = f"-i {names['f.nii']} {names['m.nii']} -m NCC 2x2x2 -threads {self.threads} -V 0"
            solver = Greedy3D()
            began = time.perf_counter()
            solver.execute(f"-d 3 -a {pair} -n 100x50x10 -ia-image-centers -o {names['a.mat']}")
            solver.execute(f"-d 3 {pair} {self.settings} -it {names['a.mat']} -o {names['w.nii']}")
            seconds = time.perf_counter() - began
            solver.execute(f"-d 3 -rf {names['f.nii']} -r {names['w.nii']} {names['a.mat']} -rc {names['c.nii']} -V 0")
            return Registration(read_transform(names["c.nii"]), fixed, moving, seconds=seconds)


class Ants(Method):
    """ANTs' ``SyN`` with its own affine, by ``antspyx``, on images written by us.

    Args:
        threads: CPU threads.
        settings: Of ``ants.registration``, such as ``syn_metric``, ``syn_sampling`` and ``reg_iterations``.
    """

    def __init__(self, threads: int, **settings: Any) -> None:
        super().__init__()
        os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = str(threads)  # read at its first registration
        self.settings = settings

    def forward(self, fixed: Image, moving: Image, **kwargs: object) -> Registration:
        import ants

        with tempfile.TemporaryDirectory() as folder:
            pair = []
            for name, image in (("f.nii", fixed), ("m.nii", moving)):
                write_image(normalized(image).data[0], image.grid, Path(folder) / name)
                pair.append(ants.image_read(str(Path(folder) / name)))
            began = time.perf_counter()
            result = ants.registration(*pair, "SyN", outprefix=str(Path(folder) / "t"), **self.settings)
            seconds = time.perf_counter() - began
            warps = [read_transform(file) for file in result["fwdtransforms"]]  # the first is applied first to points
        return Registration(reduce(chain, warps), fixed, moving, seconds=seconds)


class SimpleItk(Method):
    """SimpleITK's registration framework: mutual information, regular steps, three levels, from the headers.

    The gradient descent of its notebooks, of a constant rate, diverges on small images. Samples are up to 20000 voxels
    of each level.

    Args:
        kind: ``"rigid"`` or ``"affine"``.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, fixed: Image, moving: Image, **kwargs: object) -> Registration:
        ndim, began = fixed.ndim, time.perf_counter()
        rigid = sitk.Euler2DTransform if ndim == 2 else sitk.Euler3DTransform
        start = rigid() if self.kind == "rigid" else sitk.AffineTransform(ndim)
        start.SetCenter(fixed.grid.center[0].double().tolist())
        solver = sitk.ImageRegistrationMethod()
        solver.SetMetricAsMattesMutualInformation(32)
        solver.SetMetricSamplingStrategy(solver.RANDOM)
        shares = [min(1.0, 20000 * shrink**ndim / fixed.data.numel()) for shrink in (4, 2, 1)]
        solver.SetMetricSamplingPercentagePerLevel(shares, 1)
        solver.SetInterpolator(sitk.sitkLinear)
        solver.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-4, 200)
        solver.SetOptimizerScalesFromPhysicalShift()
        solver.SetShrinkFactorsPerLevel([4, 2, 1])
        solver.SetSmoothingSigmasPerLevel([2, 1, 0])
        solver.SetInitialTransform(start)
        if fixed.mask is not None:
            solver.SetMetricFixedMask(to_sitk(fixed.mask[0].to(torch.uint8), fixed.grid))
        if moving.mask is not None:
            solver.SetMetricMovingMask(to_sitk(moving.mask[0].to(torch.uint8), moving.grid))
        found = solver.Execute(*(to_sitk(image.data[0].float(), image.grid) for image in (fixed, moving)))
        return Registration(from_itk(found), fixed, moving, seconds=time.perf_counter() - began)


class Elastix(Method):
    """elastix by ``itk-elastix``, with its default parameters of a rigid or an affine registration.

    Masks are not eroded: at its default, none of the moving mask is left on the coarsest level.

    Args:
        kind: ``"rigid"`` or ``"affine"``.
    """

    def __init__(self, kind: str) -> None:
        import itk

        itk.ParameterObject.New()  # loads it, which takes seconds
        super().__init__()
        self.kind = kind

    def forward(self, fixed: Image, moving: Image, **kwargs: object) -> Registration:
        import itk

        ndim, began = fixed.ndim, time.perf_counter()
        images = [_itk_image(image.data, image.grid) for image in (fixed, moving)]
        settings = itk.ParameterObject.New()
        parameters = settings.GetDefaultParameterMap(self.kind)
        parameters["ErodeMask"] = ["false"]
        settings.AddParameterMap(parameters)
        masks = {
            f"{name}_mask": _itk_image(image.mask.to(torch.uint8), image.grid)
            for name, image in (("fixed", fixed), ("moving", moving))
            if image.mask is not None
        }
        _, result = itk.elastix_registration_method(*images, parameter_object=settings, number_of_threads=1, **masks)
        found = result.GetParameterMap(0)
        values = [float(value) for value in found["TransformParameters"]]
        center = [float(value) for value in found["CenterOfRotationPoint"]]
        rigid = sitk.Euler2DTransform if ndim == 2 else sitk.Euler3DTransform
        transform = rigid() if self.kind == "rigid" else sitk.AffineTransform(ndim)
        transform.SetFixedParameters(center + [0.0] * (len(transform.GetFixedParameters()) - ndim))
        transform.SetParameters(values)
        return Registration(from_itk(transform), fixed, moving, seconds=time.perf_counter() - began)


def _itk_image(values: torch.Tensor, grid: Grid) -> Any:
    """Convert a batch of one to an image of ITK's own Python package."""
    import itk

    image = itk.image_from_array(values[0, 0].contiguous().numpy())
    header = to_sitk(values[0].float(), grid)
    image.SetSpacing(header.GetSpacing())
    image.SetOrigin(header.GetOrigin())
    image.SetDirection(itk.matrix_from_array(np.array(header.GetDirection()).reshape(grid.ndim, grid.ndim)))
    return image


class AirLab:
    """AirLab's own solver. No package index has it, so it is imported from a checkout of its source.

    Steps, weights and B-splines are those of learnreg in AirLab's units, where an image extends from -1 to 1.

    Args:
        path: The checkout, the folder that has the folder ``airlab``.
        fixed: ``(1, 1, n, n, n)``, voxels of 1 mm.
        moving: Of the same shape.
    """

    def __init__(self, path: Path, fixed: torch.Tensor, moving: torch.Tensor) -> None:
        if not (path / "airlab" / "__init__.py").is_file():
            remedy = "name a checkout, such as git clone https://github.com/airlab-unibas/airlab makes."
            raise SystemExit(f"{path} is no source of AirLab, it has no airlab/__init__.py: {remedy}")
        self.path = path
        sys.path.insert(0, str(path))
        try:
            self.module = import_module("airlab")
        except ImportError as error:
            raise SystemExit(f"AirLab of {path} does not load ({error}): pip install what it needs.") from error
        finally:
            sys.path.remove(str(path))
        warnings.filterwarnings("ignore", "Default grid_sample")  # it leaves align_corners to PyTorch
        size = list(fixed.shape[2:])
        self.images = [self.module.Image(image, size, [1.0] * 3, [0.0] * 3) for image in (fixed, moving)]
        self.unit = 2 / (size[0] - 1)  # a voxel

    def iteration(self, kind: str, similarity: str, *, spacing: int, window: int) -> Callable[[], None]:
        """One iteration of a problem, such as ``"dense"`` and ``"LCC"``, that goes on at each call."""
        transformations, losses = self.module.transformation.pairwise, self.module.loss.pairwise
        size = self.images[0].size
        if kind == "B-spline":
            transformation = transformations.BsplineTransformation(size, sigma=[spacing] * 3, order=3)
        else:
            transformation = transformations.NonParametricTransformation(size, diffeomorphic=kind != "dense")
        smooth = self.module.regulariser.displacement.DiffusionRegulariser(self.images[0].spacing)
        smooth.set_weight(0.1 * 3 / self.unit**2)  # its mean is over the components, too
        registration = self.module.PairwiseRegistration(verbose=False)
        registration.set_transformation(transformation)
        registration.set_regulariser_displacement([smooth])
        registration.set_optimizer(torch.optim.Adam(transformation.parameters(), lr=0.1 * self.unit))
        registration.set_number_of_iterations(1)

        def iterate() -> None:
            registration.start()

        try:
            loss = losses.MSE(*self.images) if similarity == "MSE" else losses.LCC(*self.images, sigma=[window // 2])
            registration.set_image_loss([loss])
            iterate()  # the first warms up
        except (AttributeError, RuntimeError) as error:
            remedy = "if it is LCC, write np.prod for np.product and ~mask for 1-mask in airlab/loss/pairwise.py."
            raise SystemExit(f"{kind} / {similarity} of {self.path} does not run here ({error}): {remedy}") from error
        return iterate


def pieces(
    fixed: torch.Tensor, warped: torch.Tensor, velocity: torch.Tensor, spline: torch.Tensor
) -> dict[tuple[str, str], Piece]:
    """The peers' versions of the pieces, by group and name, on the same tensors."""
    found: dict[tuple[str, str], Piece] = {
        ("B-spline", "transposed convolution, as AirLab has it"): partial(_transposed, spline, velocity.shape[2:]),
        ("LNCC window=9, kernel=box", "convolution with ones, as VoxelMorph had it"): partial(
            _dense_lncc, warped, fixed
        ),
    }
    if find_spec("monai"):
        found |= _monai(fixed, warped, velocity)
    if find_spec("voxelmorph") and find_spec("neurite"):
        found |= _voxelmorph(fixed, warped, velocity)
    else:
        print("voxelmorph is left out: pip install -e '.[peers]'")
    if find_spec("convexAdam"):
        from convexAdam.convex_adam_utils import MINDSSC

        own = MINDSSC(fixed, 1, 2, device="cpu")
        found["MIND", "convexAdam"] = lambda: (MINDSSC(warped, 1, 2, device="cpu") - own).square().mean()
    else:
        print("convexAdam is left out: pip install -e '.[peers]'")
    return found


def _monai(fixed: torch.Tensor, warped: torch.Tensor, velocity: torch.Tensor) -> dict[tuple[str, str], Piece]:
    from monai.losses import (
        BendingEnergyLoss,
        DiffusionLoss,
        GlobalMutualInformationLoss,
        LocalNormalizedCrossCorrelationLoss,
        SSIMLoss,
    )
    from monai.networks.blocks import DVF2DDF, Warp

    integrate, move = DVF2DDF(num_steps=7, mode="bilinear", padding_mode="border"), Warp("bilinear", "border")
    return {
        ("warp", "MONAI"): lambda: move(fixed, velocity),
        ("exponential", "MONAI, 7 squarings"): lambda: integrate(velocity),
        ("LNCC window=9, kernel=box", "MONAI"): partial(
            LocalNormalizedCrossCorrelationLoss(kernel_size=9), warped, fixed
        ),
        ("MutualInformation", "MONAI, Gaussian windows, 23 bins"): partial(
            GlobalMutualInformationLoss(), warped, fixed
        ),
        ("SSIM", "MONAI"): partial(SSIMLoss(3, win_size=7, kernel_type="uniform"), warped, fixed),
        ("Diffusion", "MONAI"): partial(DiffusionLoss(), velocity),
        ("Bending", "MONAI"): partial(BendingEnergyLoss(), velocity),
    }


def _voxelmorph(fixed: torch.Tensor, warped: torch.Tensor, velocity: torch.Tensor) -> dict[tuple[str, str], Piece]:
    from neurite.nn.modules import NCC, SpatialGradient
    from voxelmorph.nn.modules import IntegrateVelocityField, SpatialTransformer

    integrate, move = IntegrateVelocityField(steps=7), SpatialTransformer()
    return {
        ("warp", "VoxelMorph"): lambda: move(fixed, velocity),
        ("exponential", "VoxelMorph, 7 squarings"): lambda: integrate(velocity),
        ("LNCC window=9, kernel=box", "neurite"): partial(NCC(9), warped, fixed),
        ("Diffusion", "neurite"): partial(SpatialGradient("l2"), velocity),
    }


def integrators(grid: Grid) -> dict[str, Integrator]:
    """Velocity in voxels to displacement in voxels, ours first."""

    def first_order(velocity: torch.Tensor) -> torch.Tensor:
        u = velocity / 2**7
        for _ in range(7):
            u = compose(u, u, grid)
        return u

    found: dict[str, Integrator] = {
        f"learnreg, {k} squarings": partial(exponential, grid=grid, steps=k) for k in (3, 4, 7)
    }
    found["7 squarings from first order"] = first_order
    if find_spec("monai"):
        from monai.networks.blocks import DVF2DDF

        integrate = DVF2DDF(num_steps=7, mode="bilinear", padding_mode="border")
        found["MONAI, 7 squarings"] = lambda v: integrate(v.flip(1)).flip(1)  # its components follow the array's axes
    if find_spec("voxelmorph"):
        from voxelmorph.nn.modules import IntegrateVelocityField

        steps = IntegrateVelocityField(steps=7)
        found["VoxelMorph, 7 squarings"] = lambda v: steps(v.flip(1)).flip(1)
    return found


@dataclass(frozen=True)
class Trainee:
    """A network in training, by its own losses.

    Args:
        module: Its weights.
        loss: ``(fixed, moving) -> scalar``.
        answer: ``(fixed, moving) -> Transform``.
    """

    module: torch.nn.Module
    loss: Callable[[Image, Image], torch.Tensor]
    answer: Callable[[Image, Image], Transform]


def trainees() -> dict[str, Trainee]:
    """The peers' networks as they come, each with LNCC 9 and its own smoothness of weight 1, 7 squarings."""
    found: dict[str, Trainee] = {}
    if find_spec("voxelmorph") and find_spec("neurite"):
        from neurite.nn.modules import NCC, SpatialGradient
        from voxelmorph.nn.models import VxmPairwise

        pairwise, ncc, smooth = VxmPairwise(3, 1, 1, integration_steps=7), NCC(9), SpatialGradient("l2")

        def own(fixed: Image, moving: Image) -> torch.Tensor:
            field, warped = pairwise(moving.data, fixed.data, return_warped_source=True)
            return 1 - ncc(warped, fixed.data) + smooth(field)

        found["VoxelMorph"] = Trainee(pairwise, own, lambda f, m: _in_mm(pairwise(m.data, f.data), f.grid))
    else:
        print("voxelmorph is left out: pip install -e '.[peers]'")
    from monai.losses import DiffusionLoss, LocalNormalizedCrossCorrelationLoss
    from monai.networks.nets import VoxelMorph

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        monai, lncc, diffusion = VoxelMorph(), LocalNormalizedCrossCorrelationLoss(kernel_size=9), DiffusionLoss()

    def theirs(fixed: Image, moving: Image) -> torch.Tensor:
        warped, field = monai(moving.data, fixed.data)
        return 1 + lncc(warped, fixed.data) + diffusion(field)

    found["MONAI VoxelMorph"] = Trainee(monai, theirs, lambda f, m: _in_mm(monai(m.data, f.data)[1], f.grid))
    return found


def _in_mm(voxels: torch.Tensor, grid: Grid) -> Displacement:
    """A displacement in voxels whose components follow the array's axes."""
    return Displacement(voxels_to_mm(voxels.flip(1), grid)[0], grid)


def _transposed(coefficients: torch.Tensor, shape: torch.Size, stride: int = 8) -> torch.Tensor:
    """A cubic B-spline as one dense transposed convolution with its N-D kernel."""
    t = (torch.arange(4 * stride - 1) - (2 * stride - 1)).abs() / stride
    kernel = torch.where(t < 1, 2 / 3 - t**2 + t**3 / 2, (2 - t).clamp(min=0) ** 3 / 6)
    kernel = kernel[:, None, None] * kernel[None, :, None] * kernel[None, None]
    weight = kernel.expand(3, 1, *kernel.shape)
    fine = F.conv_transpose3d(coefficients, weight, stride=stride, groups=3)
    return fine[:, :, : shape[0], : shape[1], : shape[2]]


def _dense_lncc(warped: torch.Tensor, fixed: torch.Tensor, window: int = 9) -> torch.Tensor:
    """LNCC whose five local sums are dense convolutions with ones."""
    ones = torch.ones(1, 1, window, window, window)

    def total(x: torch.Tensor) -> torch.Tensor:
        return F.conv3d(x, ones, padding=window // 2)

    size = window**3
    w, f, ww, ff, wf = (total(x) for x in (warped, fixed, warped * warped, fixed * fixed, warped * fixed))
    cross = wf - w * f / size
    return 1 - (cross * cross / ((ww - w * w / size) * (ff - f * f / size) + 1e-5)).mean()
