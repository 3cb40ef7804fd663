"""Preprocessing: from an image on disk to intensities in [0, 1] on the model's grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from learnreg.errors import InputError
from learnreg.grid import Grid
from learnreg.image import Image, crop_to_content, crop_to_view, with_field_of_view
from learnreg.sampling import Padding, check_padding, resize_image, sample_image, sample_labels
from learnreg.transforms import Transform

FINEST = 1.0  # voxels of the fixed image; a grid is not finer


def normalized(image: Image, *, lower: float = 0.01, upper: float = 0.995, name: str = "image") -> Image:
    """Rescale intensities so that two quantiles become 0 and 1, and clamp them to that range.

    Args:
        image: Any intensity scale and offset; each channel of each image is rescaled independently. Quantiles count the
            voxels of the mask, if there is one.
        lower: Quantile that becomes 0.
        upper: Quantile that becomes 1; if both quantiles are equal, the extremes are used.
        name: Name in error messages.

    Raises:
        InputError: The image is constant within its mask, or the mask is empty.

    Example:
        >>> image = learnreg.Image(torch.arange(1000.0).reshape(1, 1, 10, 10, 10), learnreg.Grid.regular((10, 10, 10)))
        >>> data = normalized(image).data
        >>> float(data.min()), float(data.max())
        (0.0, 1.0)
    """
    flat = image.data.detach().flatten(2).cpu().numpy()
    if image.mask is None:
        low, high = np.quantile(flat, [lower, upper], axis=-1)
        least, greatest = flat.min(-1), flat.max(-1)
    else:
        counted = (image.mask != 0).expand(image.batch_size, 1, *image.grid.shape).flatten(1).cpu().numpy()
        if not counted.any(-1).all():
            raise InputError(f"The mask of {name} is empty; leave it out, or give one that covers part of the image.")
        ranges = [
            [(*np.quantile(kept, [lower, upper]), kept.min(), kept.max()) for kept in channels[:, inside]]
            for channels, inside in zip(flat, counted, strict=True)
        ]
        low, high, least, greatest = np.moveaxis(np.array(ranges), -1, 0)
    if (least == greatest).any():
        where = "" if image.mask is None else " within its mask"
        raise InputError(
            f"{name} is constant{where} (every value is {least.flat[0]:g}); there is nothing to register. Give another "
            "image."
        )
    narrow = high - low <= 1e-6 * (greatest - least)
    low, high = np.where(narrow, least, low), np.where(narrow, greatest, high)
    shape = (*low.shape, *([1] * image.ndim))
    shift = torch.as_tensor(low.reshape(shape)).to(image.data)
    scale = torch.as_tensor((high - low).reshape(shape)).to(image.data)
    return image.with_data((image.data - shift).div_(scale).clamp_(0, 1))


def without_padding(image: Image) -> Image:
    """Mask out a constant that a scanner wrote where it measured nothing, such as -3024 around a CT.

    The lowest value counts as padding if it is negative, if at least 0.1 % of the voxels have it, and if the next value
    is higher by at least a quarter of the range of all others. Air around a CT, or the zeros of a skull-stripped brain,
    have no such gap.

    Args:
        image: Intensities as stored, one image.

    Returns:
        The image with padding left out of its mask; the image itself if it has none.
    """
    least = image.data.min()
    if float(least) >= 0:
        return image
    padding = (image.data == least).any(1, keepdim=True)
    others = image.data[image.data > least]
    if not others.numel() or int(padding.sum()) < 0.001 * padding.numel():
        return image
    following, greatest = np.quantile(others.cpu().numpy(), [0.0, 0.995])
    if following - float(least) < 0.25 * (greatest - following):
        return image
    mask = (~padding).to(image.data.dtype)
    return replace(image, mask=mask if image.mask is None else mask * (image.mask != 0))


def continued(image: Image) -> Image:
    """Replace the intensities outside of the mask by that of the nearest voxel inside.

    Interpolation, windows and coarser levels reach beyond a mask; after it, what they find there depends on the voxels
    inside only.

    Args:
        image: The image; without a mask it is returned as it is.
    """
    if image.mask is None:
        return image
    inside = (image.mask != 0).expand(image.batch_size, 1, *image.grid.shape)[:, 0].cpu().numpy()
    if inside.all() or not inside.any():
        return image
    from scipy.ndimage import distance_transform_edt

    spacing = image.grid.spacing[0].flip(0).tolist()
    filled = []
    for data, kept in zip(image.data, inside, strict=True):
        nearest = distance_transform_edt(~kept, sampling=spacing, return_distances=False, return_indices=True)
        filled.append(data[(slice(None), *torch.from_numpy(nearest.astype(np.int64)).to(data.device))])
    return image.with_data(torch.stack(filled))


def with_view(image: Image, *, content: float = 0.1, share: float = 0.02) -> Image:
    """Return the image with its field of view as its mask, if content reaches the border.

    What lies beyond such a border is unknown. Beyond a border of background lies background: around a skull-stripped
    brain, or a head in air, 0 is known.

    Args:
        image: Intensities in [0, 1], 0 is background. An image with a mask is returned as it is.
        content: Intensities above it are content; noise in air is below.
        share: Content reaches the border if at least this share of the outermost samples on one side has it.
    """
    if image.mask is not None:
        return image
    bright = (image.data > content).any(1)
    sides = [bright.select(axis, end) for axis in range(1, bright.ndim) for end in (0, -1)]
    if max(float(side.float().mean()) for side in sides) < share:
        return image
    return with_field_of_view(image)


@dataclass(frozen=True)
class ModelSpace:
    """The grid of a network, relative to an image.

    Args:
        spacing: mm along ``(x, y, z)``, or one value for all axes.
        shape: ``(z, y, x)``; ``None`` covers the image, rounded up to a multiple of ``multiple``.
        multiple: Multiple of the sizes.
        content: Center the grid on the content of the image, as for skull-stripped brains, instead of on its field of
            view.
        padding: Value outside of an image: ``"zeros"``, or the ``"border"`` of its field of view, see
            :func:`learnreg.image.crop_to_view`. With ``"border"`` the field of view is the image's mask, unless it has
            one.
        longest: Samples along the longest side of the content of the fixed image. The grid then has no size of its own,
            in mm or in samples, see :meth:`fitted`; ``shape`` is that of the training.

    Raises:
        InputError: The padding is unknown, or ``longest`` is below ``multiple``.
    """

    spacing: float | Sequence[float] = 1.0
    shape: Sequence[int] | None = None
    multiple: int = 16
    content: bool = False
    padding: Padding = "zeros"
    longest: int | None = None

    def __post_init__(self) -> None:
        check_padding(self.padding)
        if self.longest is not None and self.longest < self.multiple:
            raise InputError(f"longest is a number of samples, at least {self.multiple}, got {self.longest}.")

    def fitted(self, image: Image) -> ModelSpace:
        """Return the space for pairs with this fixed image: with ``longest``, its spacing follows from the content.

        Args:
            image: The fixed image after :meth:`seen`, intensities in [0, 1].
        """
        if self.longest is None:
            return self
        content = crop_to_content(image, margin=0, multiple=1).grid
        spacing = max(float(content.extent.max()) / self.longest, FINEST * float(image.grid.spacing.min()))
        return replace(self, spacing=spacing, shape=None, content=True, longest=None)

    def seen(self, image: Image) -> Image:
        """Return the part of an image that the model uses, before anything is measured on it."""
        return crop_to_view(image) if self.padding == "border" else image

    def frame(self, image: Image) -> Grid:
        """Return the grid to center the model's grid on: that of the image, or of its content."""
        return crop_to_content(image, margin=0, multiple=1).grid if self.content else image.grid

    def spacing_for(self, ndim: int) -> list[float]:
        """Return the spacing along ``(x, y, z)``, mm."""
        if isinstance(self.spacing, (int, float)):
            return [float(self.spacing)] * ndim
        if len(self.spacing) != ndim:
            raise InputError(
                f"The model works in {len(self.spacing)}-D (spacing {self.spacing}), the image is {_dimension(ndim)}."
            )
        return [float(s) for s in self.spacing]

    def grid_for(self, grid: Grid, *, cover: bool = False) -> Grid:
        """Return an LPS grid centered on ``grid``; with equal spacing it lies on the samples of ``grid``.

        Args:
            grid: Where the image lies.
            cover: Enlarge ``shape`` until it covers the whole image.
        """
        spacing = self.spacing_for(grid.ndim)
        reach = grid.direction[0].abs() @ grid.extent[0]
        needed = (reach / torch.tensor(spacing).to(reach)).sub(0.01).ceil().flip(0).tolist()
        shape = [self.multiple * -(-int(n) // self.multiple) for n in needed]
        if self.shape is not None:
            if len(self.shape) != grid.ndim:
                raise InputError(
                    f"The model works in {len(self.shape)}-D (shape {tuple(self.shape)}), the image is "
                    f"{_dimension(grid.ndim)}."
                )
            fits = all(n <= m for n, m in zip(needed, self.shape, strict=True))
            if fits or not cover:
                shape = [int(n) for n in self.shape]
        centered = Grid.regular(shape, spacing, dtype=grid.dtype).to(grid.device)
        affine = centered.affine.clone()
        affine[:, : grid.ndim, grid.ndim] += grid.center[:1]
        return _on_samples(Grid(tuple(shape), affine), grid)

    def place(self, image: Image, *, cover: bool = False) -> Image:
        """Resample an image, after :meth:`seen`, to its model grid; labels by nearest neighbor."""
        return self.onto(image, self.grid_for(self.frame(image), cover=cover))

    def onto(self, image: Image, grid: Grid, transform: Transform | None = None) -> Image:
        """Resample an image, after :meth:`seen`, to a grid of the model, see :func:`onto_grid`."""
        if self.padding == "border":
            image = with_field_of_view(image)
        return onto_grid(image, grid, transform, padding=self.padding)


def onto_grid(image: Image, onto: Grid, transform: Transform | None = None, *, padding: Padding = "zeros") -> Image:
    """Resample without aliasing: cells are averaged first where ``onto`` is coarser.

    Args:
        image: The image, with its labels, mask, landmarks and covariates.
        onto: The new grid.
        transform: From points of ``onto`` to points of the image; ``None`` is the identity.
        padding: Value outside of the image.
    """
    points = onto.points if transform is None else transform.map_grid(onto)
    coarse = image.grid.with_spacing(torch.maximum(image.grid.spacing[0], _spacing_along(onto, image.grid)).tolist())
    averaged = resize_image(Image(image.data, image.grid, image.mask), coarse.shape)
    pulled = sample_image(averaged, points, onto, padding=padding)
    labels = None if image.labels is None else sample_labels(image.labels, image.grid, points)
    landmarks = image.landmarks
    if landmarks is not None and transform is not None:
        landmarks = transform.inverse()(landmarks)
    return Image(pulled.data, onto, pulled.mask, labels, landmarks, image.covariates)


def _dimension(ndim: int) -> str:
    """Return the dimension of an image that a model does not take, and the remedy."""
    found = "2-D, or a single slice" if ndim == 2 else f"{ndim}-D"
    return f"{found}; give a model for such images, such as universal, or a method"


def _spacing_along(onto: Grid, grid: Grid) -> torch.Tensor:
    """Return the spacing of ``onto`` along the index axes of ``grid``, ``(D,)``, mm."""
    return (grid.direction[0].T @ (onto.direction[0] * onto.spacing[0])).norm(dim=1)


def _on_samples(onto: Grid, grid: Grid) -> Grid:
    """Shift ``onto`` by less than a voxel onto the samples of ``grid`` if their axes agree.

    Half a voxel is rounded down along the axes of a NIfTI file, left to right, posterior to anterior and inferior to
    superior, in whatever order and direction the samples are stored.
    """
    ndim = grid.ndim
    step = (grid.inverse_affine @ onto.affine)[0, :ndim, :ndim]
    if not bool(((step.abs() - step.abs().round()).abs() < 1e-3).all()):
        return onto
    first = grid.to_index(onto.origin[:, None])[:, 0]
    ahead = torch.tensor([-1.0, -1.0, 1.0][:ndim]).to(grid.affine) @ grid.direction[0]
    shift = (first + 0.5 - 1e-3 * ahead).floor() - first
    affine = onto.affine.clone()
    affine[:, :ndim, ndim] += (grid.affine[:, :ndim, :ndim] @ shift.unsqueeze(-1)).squeeze(-1)
    return Grid(onto.shape, affine)
