"""Sample images, masks, labels and fields at points and on other grids."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from learnreg.errors import InputError
from learnreg.grid import Grid, apply_affine
from learnreg.image import Image
from learnreg.interpolation import Mode, interpolate, sample_displaced
from learnreg.kernels.compiled import fused_without_gradient, run
from learnreg.kernels.displaced import sample_points
from learnreg.separable import apply_separable, average_matrix, resize_matrix, rows_of, slabs
from learnreg.typing import (
    BroadcastImage,
    BroadcastLabels,
    FieldTensor,
    LabelTensor,
    MatrixTensor,
    PointLabelTensor,
    PointTensor,
    SampledTensor,
)

Padding = Literal["zeros", "border"]
LabelMode = Literal["nearest", "linear"]


def check_padding(padding: str) -> None:
    """Raise ``InputError`` if the padding is unknown."""
    if padding not in get_args(Padding):
        raise InputError(f"padding is {' or '.join(get_args(Padding))}, got {padding!r}.")


def sample(
    values: BroadcastImage,
    grid: Grid,
    points: PointTensor,
    *,
    mode: Mode = "linear",
    padding: Padding = "zeros",
) -> SampledTensor:
    """Interpolate values at points in physical space.

    As in ITK, a point belongs to an image if it lies within one of its cells, up to half a voxel outside of the
    outermost samples.

    Args:
        values: ``(B, C, *grid.shape)``.
        grid: Where ``values`` lie.
        points: ``(B, *P, D)``, mm LPS; a batch of 1 on either side is broadcast.
        mode: ``"linear"`` or ``"nearest"``.
        padding: Value outside of the image: ``"zeros"``, or that of the nearest ``"border"`` sample.

    Returns:
        ``(B, C, *P)``, in the floating-point type of ``values``, at least float32.

    Raises:
        InputError: The dimensions differ.

    Example:
        >>> grid = learnreg.Grid.regular((4, 4), origin=(0.0, 0.0))
        >>> values = torch.arange(16.0).reshape(1, 1, 4, 4)
        >>> sample(values, grid, torch.tensor([[[1.5, 2.0]]]))
        tensor([[[9.5000]]])
    """
    if points.shape[-1] != grid.ndim:
        raise InputError(f"sample needs {grid.ndim}-D points for a {grid.ndim}-D grid, got {tuple(points.shape)}.")
    if tuple(values.shape[2:]) != grid.shape:
        raise InputError(f"sample needs values of the grid's shape {grid.shape}, got {tuple(values.shape)}.")
    if fused_without_gradient(values, points, grid.normalizing):
        at = partial(sample_points, nearest=mode == "nearest", zeros=padding == "zeros")
        found: Tensor = run(at, values, points, grid.normalizing)
        return found
    coordinates = grid.to_normalized(points)
    with torch.autocast(values.device.type, enabled=False):
        values = values.to(torch.promote_types(values.dtype, torch.float32))
        coordinates = coordinates.to(values.dtype)
        sampled = interpolate(values, coordinates, mode)
        if padding == "zeros":
            inside = (coordinates.detach().abs() <= 1).all(dim=-1)
            sampled = sampled * inside.unsqueeze(1)
    return sampled


@dataclass(frozen=True, eq=False)
class SeparableMap:
    """A map of the samples of a grid, ``x -> A (x + u(x))`` with ``u = (M_z x M_y x M_x) c``.

    Images are warped by it without the mapped points of the whole grid.

    Args:
        field: ``c``, ``(B, D, *lattice)``, mm, such as the coefficients of a spline.
        matrices: One matrix per axis in array order, from the lattice to the grid; ``None`` where both agree.
        linear: ``A``, ``(N, D+1, D+1)``, homogeneous, mm to mm, without a gradient; ``None`` is the identity.
    """

    field: FieldTensor
    matrices: tuple[Tensor | None, ...]
    linear: MatrixTensor | None = None

    def then(self, matrix: MatrixTensor) -> SeparableMap:
        """Return this map followed by a linear map."""
        return replace(self, linear=matrix if self.linear is None else matrix @ self.linear)

    def points(self, grid: Grid, rows: slice) -> PointTensor:
        """Map a slab of a grid: ``(B, *slab, D)``, mm, for some samples of the first array axis."""
        first, reach = rows_of(self.matrices[0], rows)
        moved = apply_separable(self.field[:, :, reach], (first, *self.matrices[1:]))
        points = grid.rows(rows).points + moved.movedim(1, -1)
        return points if self.linear is None else apply_affine(self.linear, points)


def sample_separable(
    moving: Image,
    where: SeparableMap,
    onto: Grid,
    *,
    mode: Mode = "linear",
    padding: Padding = "zeros",
    labels: LabelMode = "nearest",
) -> Image:
    """Sample an image, mask and labels through a separable map, slab by slab; see :mod:`learnreg.interpolation`.

    Args:
        moving: The image.
        where: From the samples of ``onto`` to points of ``moving``.
        onto: The grid of the result.
        mode: Interpolation of the intensities.
        padding: Value outside of ``moving``.
        labels: Interpolation of the labels, see :func:`sample_labels`.
    """
    normalizing = moving.grid.normalizing.double()
    if where.linear is not None:
        normalizing = normalizing @ where.linear.double()
    data = moving.data.to(torch.promote_types(moving.data.dtype, torch.float32))
    base = (normalizing @ onto.affine.double()).to(data.dtype)
    field, linear = where.field.to(data.dtype), normalizing[:, : onto.ndim, : onto.ndim].to(data.dtype)
    place: dict[str, Any] = {"linear": linear, "matrices": where.matrices, "zeros": padding == "zeros"}
    warped = sample_displaced(data, field, base, onto.shape, mode=mode, **place)
    mask = moving.mask
    if mask is not None:
        place["zeros"] = True
        mask = sample_displaced(mask.to(data.dtype), field.detach(), base, onto.shape, mode="nearest", **place)
    if moving.labels is None:
        return Image(warped, onto, mask)
    return Image(warped, onto, mask, separable_labels(moving, where, onto, mode=labels))


def separable_labels(moving: Image, where: SeparableMap, onto: Grid, *, mode: LabelMode = "nearest") -> LabelTensor:
    """Sample the labels of an image through a separable map, slab by slab; see :func:`sample_labels`."""
    if moving.labels is None:
        raise InputError("The image has no labels to sample.")
    where = replace(where, field=where.field.detach())
    every = slabs(onto.shape, max(where.field.shape[0], moving.batch_size), where.field.device)
    points = (where.points(onto, rows) for rows in every)
    if mode == "nearest":
        return torch.cat([sample_labels(moving.labels, moving.grid, slab) for slab in points], dim=2)
    return sample_labels(moving.labels, moving.grid, torch.cat(list(points), dim=1), mode=mode)


def sample_image(
    moving: Image,
    points: PointTensor,
    onto: Grid,
    *,
    mode: Mode = "linear",
    padding: Padding = "zeros",
    labels: LabelMode = "nearest",
) -> Image:
    """Sample an image with its mask and labels at points; landmarks are dropped.

    Args:
        moving: The image.
        points: ``(B, *onto.shape, D)``, mm, a point of ``moving`` for each sample of ``onto``.
        onto: The grid of the result.
        mode: Interpolation of the intensities.
        padding: Value outside of ``moving``.
        labels: Interpolation of the labels, see :func:`sample_labels`.
    """
    data = sample(moving.data, moving.grid, points, mode=mode, padding=padding)
    mask = segmentation = None
    if moving.mask is not None:
        mask = sample(moving.mask.to(data.dtype), moving.grid, points.detach(), mode="nearest")
    if moving.labels is not None:
        segmentation = sample_labels(moving.labels, moving.grid, points.detach(), mode=labels)
    return Image(data, onto, mask, segmentation)


def sample_labels(
    labels: BroadcastLabels, grid: Grid, points: PointTensor, *, mode: LabelMode = "nearest"
) -> PointLabelTensor:
    """Sample integer labels at points, exactly for any label value.

    Args:
        labels: ``(B, 1, *grid.shape)``.
        grid: Where they lie.
        points: ``(B, *P, D)``, mm.
        mode: ``"nearest"`` neighbor; or ``"linear"``, which interpolates each label as a map of 0 and 1 and takes the
            largest, the lowest label in a tie. Borders become smooth.

    Returns:
        ``(B, 1, *P)``; 0 outside of the grid and for points that are NaN.

    Raises:
        InputError: The mode is unknown.
    """
    if mode == "nearest":
        return _nearest_labels(labels, grid, points)
    if mode != "linear":
        raise InputError(f"Unknown mode {mode!r} for labels; choose nearest or linear.")
    best = winner = None
    dtype = torch.promote_types(points.dtype, torch.float32)
    for value in labels.unique(sorted=True):  # one label at a time: a brain has over a hundred
        share = sample((labels == value).to(dtype), grid, points, padding="border")
        if best is None or winner is None:
            best, winner = share, torch.full_like(share, int(value), dtype=labels.dtype)
        else:
            winner = torch.where(share > best, value, winner)
            best = torch.maximum(best, share)
    assert winner is not None  # noqa: S101 - labels are not empty
    inside = (grid.to_normalized(points).abs() <= 1).all(dim=-1).unsqueeze(1)
    return torch.where(inside, winner, torch.zeros_like(winner))


def _nearest_labels(labels: BroadcastLabels, grid: Grid, points: PointTensor) -> PointLabelTensor:
    batch = max(labels.shape[0], points.shape[0])
    index = grid.to_index(points.expand(batch, *points.shape[1:])).reshape(batch, -1, grid.ndim)
    flat, inside = None, None
    for axis, n in zip(reversed(range(grid.ndim)), grid.shape, strict=True):  # z first: (z ny + y) nx + x
        nearest = (index[..., axis] + 0.5).floor_()
        reached = (nearest >= 0) & (nearest < n)
        nearest = nearest.where(reached, 0).long()
        flat = nearest if flat is None else flat.mul_(n).add_(nearest)
        inside = reached if inside is None else inside.logical_and_(reached)
    assert flat is not None and inside is not None  # noqa: S101 - there is at least one axis
    values = labels.reshape(labels.shape[0], labels.shape[1], -1).expand(batch, -1, -1)
    taken = values.gather(2, flat.unsqueeze(1).expand(-1, labels.shape[1], -1)).mul_(inside.unsqueeze(1))
    return taken.reshape(batch, labels.shape[1], *points.shape[1:-1])


def resample(image: Image, onto: Grid, *, mode: Mode = "linear", padding: Padding = "zeros") -> Image:
    """Resample an image onto another grid of the same physical space; labels and mask by nearest neighbor.

    Args:
        image: The image.
        onto: The new grid.
        mode: Interpolation of the intensities.
        padding: Value outside of ``image``.

    Example:
        >>> image = learnreg.Image(torch.rand(1, 1, 8, 8, 8), learnreg.Grid.regular((8, 8, 8)))
        >>> resample(image, image.grid.with_spacing(2.0)).data.shape
        torch.Size([1, 1, 4, 4, 4])
    """
    return sample_image(image, onto.points, onto, mode=mode, padding=padding)


def resize(values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Resample ``(B, C, *)`` values to another shape over the same field of view: linear up, mean over cells down."""
    matrices = []
    for old, new in zip(values.shape[2:], shape, strict=True):
        matrices.append(
            None if old == new else resize_matrix(old, new, values) if new > old else average_matrix(old, new, values)
        )
    return apply_separable(values, matrices)


def resize_image(image: Image, shape: tuple[int, ...]) -> Image:
    """Resample an image to another shape over its own field of view.

    Linear up, mean over cells down, labels by nearest. With a mask, the mean counts its voxels only; a cell without any
    has the mean of all.
    """
    if tuple(shape) == image.grid.shape:
        return image
    data, mask, labels = resize(image.data, shape), image.mask, image.labels
    if mask is not None:
        mask = (mask != 0).to(image.data.dtype)
        if not bool(mask.all()):
            share = resize(mask, shape)
            data = torch.where(share > 0, resize(image.data * mask, shape) / share.clamp(min=1e-6), data)
            mask = (share >= 0.5).to(image.data.dtype)
        else:
            mask = torch.ones_like(data[:, :1])
    for axis, (old, new) in enumerate(zip(image.grid.shape, shape, strict=True), start=2):
        if labels is not None:
            nearest = ((torch.arange(new, device=labels.device) + 0.5) * (old / new)).long()
            labels = labels.index_select(axis, nearest)
    return replace(image, data=data, grid=image.grid.resized(shape), mask=mask, labels=labels)
