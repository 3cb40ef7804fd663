"""What networks share: their interface, and the way from voxels to mm."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from monai.networks.blocks import Convolution
from torch import Tensor, nn

from learnreg.grid import Grid, linear_map
from learnreg.image import Image
from learnreg.objective import Objective
from learnreg.transforms import BSpline, Displacement, Transform, Velocity, spline_lattice
from learnreg.typing import FieldTensor, Scalar
from learnreg.warping import sample

Output = Literal["velocity", "displacement", "bspline", "bspline-velocity"]
USUAL = {"ndim": 3, "in_channels": 1}
CONVOLUTIONS: dict[int, type[nn.Conv2d] | type[nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}


class Network(nn.Module):
    """A module whose ``forward(fixed, moving)`` returns a :class:`Transform`."""

    ndim: int
    in_channels: int

    @abstractmethod
    def forward(self, fixed: Image, moving: Image) -> Transform:
        """``fixed`` and ``moving`` lie on one grid, intensities in [0, 1]."""

    def task(self, fixed: Image, moving: Image, objective: Objective) -> tuple[Image, Image, Objective]:
        """What this network trains on and is judged by, in place of a pair and an objective; here, those themselves."""
        return fixed, moving, objective

    def terms(self, fixed: Image, moving: Image, transform: Transform, objective: Objective) -> dict[str, Scalar]:
        """What a training minimizes beside the objective, by name and with its weight: here, nothing.

        Asked for right after the pass that made ``transform``; the images are what the objective compares.
        """
        return {}

    @property
    def has_terms(self) -> bool:
        """Whether :meth:`terms` can say something, for those who prepare images for it: here, if it is overridden."""
        return type(self).terms is not Network.terms

    def check(self, fixed: Image, moving: Image) -> None:
        """Raise ``ValueError`` unless the pair is what the network takes."""
        for name, image in (("fixed", fixed), ("moving", moving)):
            if image.ndim != self.ndim or image.data.shape[1] != self.in_channels:
                raise ValueError(
                    f"This network takes {self.ndim}-D images of {self.in_channels} channel(s), "
                    f"{name} is {image.ndim}-D with {image.data.shape[1]}; use a network trained for such images."
                )
        if fixed.grid.shape != moving.grid.shape:
            raise ValueError(
                f"A network takes a pair on one grid, got {fixed.grid.shape} and {moving.grid.shape}; "
                "learnreg.register resamples any pair."
            )


def pad_to_multiple(values: Tensor, grid: Grid, multiple: int) -> tuple[Tensor, Grid]:
    """Zeros behind the last samples until each size is a multiple, and the grid that goes with it."""
    missing = [-n % multiple for n in values.shape[2:]]
    if not any(missing):
        return values, grid
    padded = F.pad(values, [p for n in reversed(missing) for p in (0, n)])
    return padded, Grid(tuple(padded.shape[2:]), grid.affine)


def voxels_to_mm(voxels: FieldTensor, grid: Grid) -> tuple[FieldTensor, Grid]:
    """A predicted field in index units of ``grid`` as one in mm.

    Args:
        voxels: ``(B, D, *shape)``, components along the index axes ``(i, j, k)``, in voxels of
            ``grid``; ``shape`` may be coarser than the grid.
        grid: The field of view.

    Returns:
        The field in mm, float32, and the grid of its samples.
    """
    field = linear_map(grid.affine, voxels)
    return field, grid.resized(tuple(voxels.shape[2:]))


def convolution(ndim: int, inputs: int, outputs: int, *, stride: int = 1) -> Convolution:
    """3x3x3 convolution, instance norm, leaky ReLU."""
    act = ("LEAKYRELU", {"negative_slope": 0.2, "inplace": True})
    return Convolution(
        ndim, inputs, outputs, strides=stride, kernel_size=3, norm="INSTANCE", act=act, adn_ordering="NA"
    )


def as_transform(voxels: FieldTensor, grid: Grid, output: Output, steps: int) -> Transform:
    """What a field in index units of ``grid`` stands for; see :func:`voxels_to_mm`."""
    field, control = voxels_to_mm(voxels, grid)
    if output == "velocity":
        return Velocity(field, control, steps)
    if output == "displacement":
        return Displacement(field, control)
    lattice = spline_lattice(grid, (grid.extent[0] / control.size).tolist())
    spline = BSpline(sample(field, control, lattice.points, padding="border"), lattice)
    if output == "bspline":
        return spline
    half = grid.coarsened(2)
    return Velocity(spline.displacement(half), half, steps)


def check_output(name: str, output: str) -> None:
    """Raise ``ValueError`` unless the output is known."""
    if output not in get_args(Output):
        raise ValueError(f"{name} output is {', '.join(get_args(Output))}, got {output!r}.")


def per_spacing(field: FieldTensor, grid: Grid) -> FieldTensor:
    """A field in mm in units of the spacing of ``grid``, as a network takes it in."""
    return field / grid.spacing.reshape(-1, grid.ndim, *[1] * grid.ndim)


def strided_encoder(ndim: int, inputs: int, widths: Sequence[int]) -> nn.ModuleList:
    """Blocks of two convolutions, each at half the resolution of the one before."""
    return nn.ModuleList(
        nn.Sequential(convolution(ndim, i, o, stride=2), convolution(ndim, o, o))
        for i, o in zip([inputs, *widths[:-1]], widths, strict=True)
    )


def run_blocks(blocks: Iterable[nn.Module], values: Tensor) -> list[Tensor]:
    """What each block returns, the next one given what the last one did."""
    found = []
    for block in blocks:
        values = block(values)
        found.append(values)
    return found


class Decoder(nn.Module):
    """From the coarsest features up, at each level joined with what the encoder had there.

    Args:
        ndim: 2 or 3.
        skips: Channels of the encoder's features, fine to coarse.
        outputs: Channels after each level, fine to coarse; one fewer.
    """

    def __init__(self, ndim: int, skips: Sequence[int], outputs: Sequence[int]) -> None:
        super().__init__()
        below = [*outputs, skips[-1]][1:]
        self.blocks = nn.ModuleList(
            nn.Sequential(convolution(ndim, low + skip, out), convolution(ndim, out, out))
            for low, skip, out in reversed(list(zip(below, skips[:-1], outputs, strict=True)))
        )

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Features fine to coarse, each ``(B, C, *shape)``; the result has the shape of the first."""
        x = features[-1]
        for block, skip in zip(self.blocks, reversed(features[:-1]), strict=True):
            x = block(torch.cat([F.interpolate(x, size=skip.shape[2:], mode="nearest"), skip], dim=1))
        return x


def check_architecture(name: str, ndim: int, channels: Sequence[int]) -> list[int]:
    """The widths as plain numbers.

    Raises:
        ValueError: Not 2-D or 3-D, or no widths.
    """
    if ndim not in (2, 3) or not channels:
        raise ValueError(
            f"{name} needs ndim 2 or 3 and at least one width, got ndim={ndim}, channels={list(channels)}."
        )
    return [int(c) for c in channels]


def start_near_zero(layer: nn.Linear | nn.Conv2d | nn.Conv3d, std: float = 1e-4) -> None:
    """A layer that returns next to nothing at the start of a training."""
    nn.init.normal_(layer.weight, std=std)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class FieldHead(nn.Module):
    """Convolution to a vector field, close to zero at the start of a training; float32 also under autocast."""

    def __init__(self, ndim: int, inputs: int) -> None:
        super().__init__()
        self.conv = CONVOLUTIONS[ndim](inputs, ndim, 3, padding=1)
        start_near_zero(self.conv)

    def forward(self, features: Tensor) -> FieldTensor:
        """``(B, C, *shape)`` to ``(B, D, *shape)``."""
        with torch.autocast(features.device.type, enabled=False):
            field: Tensor = self.conv(features.to(self.conv.weight.dtype))
            return field


class FieldNetwork(Network):
    """Any module from a stack of both images to a field, as a network: its output is taken in voxels.

    Args:
        module: ``(B, 2 C, *grid)``, fixed before moving, to ``(B, D, *shape)``; ``shape`` may be coarser. MONAI's
            networks with ``out_channels=spatial_dims`` are such.
        ndim: 2 or 3.
        in_channels: Channels of one image.
        multiple: The images are padded to multiples of it.
        diffeomorphic: The field is a velocity, else a displacement.
        steps: Squarings of a velocity.
    """

    def __init__(
        self,
        module: nn.Module,
        ndim: int = 3,
        *,
        in_channels: int = 1,
        multiple: int = 32,
        diffeomorphic: bool = True,
        steps: int = 4,
    ) -> None:
        super().__init__()
        self.module = module
        self.ndim, self.in_channels, self.stride = ndim, in_channels, multiple
        self.diffeomorphic, self.steps = diffeomorphic, steps

    def forward(self, fixed: Image, moving: Image) -> Transform:
        """``fixed`` and ``moving`` on one grid, intensities in [0, 1].

        Raises:
            ValueError: The module returns something else than a field.
        """
        self.check(fixed, moving)
        images, grid = pad_to_multiple(torch.cat([fixed.data, moving.data], dim=1), fixed.grid, self.stride)
        voxels = self.module(images)
        voxels = voxels[0] if isinstance(voxels, (tuple, list)) else voxels
        if voxels.ndim != images.ndim or voxels.shape[1] != self.ndim:
            raise ValueError(
                f"{type(self.module).__name__} returned {tuple(voxels.shape)}, a field is (B, {self.ndim}, ...); "
                f"give it {self.ndim} output channels."
            )
        output: Output = "velocity" if self.diffeomorphic else "displacement"
        return as_transform(voxels.to(grid.dtype), grid, output, self.steps)


class PairNetwork(Network):
    """Any module ``(fixed, moving) -> Transform`` as a network; of 3-D images with one channel unless it says so."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.ndim, self.in_channels = (int(getattr(module, key, usual)) for key, usual in USUAL.items())

    def forward(self, fixed: Image, moving: Image) -> Transform:
        """``fixed`` and ``moving`` on one grid, intensities in [0, 1]."""
        transform: Transform = self.module(fixed, moving)
        return transform


def as_network(module: nn.Module) -> Network:
    """A network as it is; a module that takes a pair as a :class:`PairNetwork`, one tensor as a :class:`FieldNetwork`.

    Raises:
        ValueError: The module takes one tensor and has no convolution that would tell of what channels.
    """
    if isinstance(module, Network):
        return module
    parameters = inspect.signature(module.forward).parameters.values()
    if sum(p.default is p.empty and p.kind is not p.VAR_KEYWORD for p in parameters) > 1:
        return PairNetwork(module)
    first = next((m for m in module.modules() if isinstance(m, nn.Conv2d | nn.Conv3d)), None)
    if first is None:
        raise ValueError(
            f"{type(module).__name__} has no convolution that tells what it takes; derive it from "
            "learnreg.networks.Network, or put it into a learnreg.networks.FieldNetwork."
        )
    ndim = 2 if isinstance(first, nn.Conv2d) else 3
    return FieldNetwork(module, ndim, in_channels=max(1, first.in_channels // 2))
