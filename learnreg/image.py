"""``Image``: intensities on a grid, with mask, labels, landmarks and covariates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from learnreg.errors import InputError
from learnreg.grid import Grid
from learnreg.typing import ImageTensor, LabelTensor, MaskTensor


@dataclass(frozen=True, eq=False)
class Image:
    """Intensities in physical space, with what else is known of the subject; immutable.

    Args:
        data: ``(B, C, *grid.shape)``, floating point.
        grid: Where the samples lie.
        mask: ``(B, 1, *grid.shape)``, non-zero where the image counts; ``None`` counts every voxel.
        labels: ``(B, 1, *grid.shape)``, integer segmentation; 0 is background.
        landmarks: ``(B, K, D)``, mm LPS. Landmark ``k`` marks the same place in both images of a pair; NaN if it is not
            marked.
        covariates: ``(B, K)``, numbers known of each subject, such as the age.

    Raises:
        InputError: A tensor does not fit the grid or the batch size.

    Example:
        >>> image = Image(torch.rand(1, 1, 8, 8, 8), learnreg.Grid.regular((8, 8, 8), spacing=2.0))
        >>> image.batch_size, image.ndim
        (1, 3)
    """

    data: ImageTensor
    grid: Grid
    mask: MaskTensor | None = None
    labels: LabelTensor | None = None
    landmarks: Float[Tensor, "#B K D"] | None = None
    covariates: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("data", "mask", "labels"):
            value: Tensor | None = getattr(self, name)
            if value is None:
                continue
            if tuple(value.shape[2:]) != self.grid.shape:
                raise InputError(
                    f"Image.{name} must be (B, C, {', '.join(map(str, self.grid.shape))}) to fit its grid, "
                    f"got {tuple(value.shape)}."
                )
        if self.landmarks is not None and (self.landmarks.ndim != 3 or self.landmarks.shape[2] != self.grid.ndim):
            raise InputError(
                f"Image.landmarks must be (B, K, {self.grid.ndim}) in mm, got {tuple(self.landmarks.shape)}."
            )
        if self.covariates is not None and self.covariates.shape[:1] != self.data.shape[:1]:
            raise InputError(
                f"Image.covariates must be ({self.data.shape[0]}, K), a row for each image, "
                f"got {tuple(self.covariates.shape)}."
            )
        if self.grid.affine.shape[0] not in (1, self.data.shape[0]):
            raise InputError(
                f"Image.grid has {self.grid.affine.shape[0]} affines for {self.data.shape[0]} images; "
                "give 1 or as many."
            )

    @property
    def batch_size(self) -> int:
        """Number of images."""
        return self.data.shape[0]

    @property
    def ndim(self) -> int:
        """Number of spatial dimensions, 2 or 3."""
        return self.grid.ndim

    def __repr__(self) -> str:
        beside = [name for name in ("mask", "labels", "landmarks", "covariates") if getattr(self, name) is not None]
        kind = str(self.data.dtype).removeprefix("torch.")
        return f"Image({', '.join([str(tuple(self.data.shape)), kind, repr(self.grid), *beside])})"

    def to(self, *args: object, **kwargs: object) -> Image:
        """Move to a device; a dtype applies to intensities, grid, landmarks and covariates, not to mask or labels."""
        data = self.data.to(*args, **kwargs)  # type: ignore[call-overload]
        dtype = data.dtype if data.dtype in (torch.float32, torch.float64) else self.grid.dtype
        return Image(
            data,
            self.grid.to(device=data.device, dtype=dtype),
            None if self.mask is None else self.mask.to(data.device),
            None if self.labels is None else self.labels.to(data.device),
            None if self.landmarks is None else self.landmarks.to(device=data.device, dtype=dtype),
            None if self.covariates is None else self.covariates.to(device=data.device, dtype=dtype),
        )

    def with_data(self, data: ImageTensor) -> Image:
        """Return the image with other intensities; grid, mask, labels and the rest stay."""
        return replace(self, data=data)


def with_field_of_view(image: Image) -> Image:
    """Return the image with its whole field of view as its mask, unless it has a mask."""
    return image if image.mask is not None else replace(image, mask=torch.ones_like(image.data[:, :1]))


def background(image: Image) -> float:
    """Return the value of nothing in an image: the lowest one if it is negative, as of air in a CT, else 0."""
    return min(0.0, float(image.data.min()))


def label_values(*maps: Int[Tensor, "..."]) -> list[int]:
    """Return the labels that all maps contain, without the background 0, in ascending order.

    Example:
        >>> label_values(torch.tensor([0, 1, 2]), torch.tensor([0, 2, 3]))
        [2]
    """
    return sorted(set.intersection(*(set(_values(labels)) for labels in maps)) - {0})


def _values(labels: Int[Tensor, "..."]) -> list[int]:
    """Return all labels of a map; counting small labels is twenty times as fast as sorting."""
    flat = labels.flatten()
    if flat.numel() and int(flat.min()) >= 0 and int(flat.max()) < 2**16:
        flat = flat.bincount().nonzero()
    return [int(v) for v in flat.unique().tolist()]


def crop_to_content(image: Image, *, margin: int = 4, multiple: int = 8, threshold: float = 0.02) -> Image:
    """Crop an image to its content: all that is not background, with a margin.

    Args:
        image: Intensities in [0, 1], 0 is background.
        margin: Voxels around the content.
        multiple: Round sizes up to multiples of it where the image is large enough, so that coarser levels have whole
            voxels.
        threshold: Intensities above it are content, as are voxels of labels, and of a mask that does not cover the
            image.

    Returns:
        The cropped image, its physical positions unchanged; the image itself if nothing can be cropped.
    """
    content = image.data.amax(1, keepdim=True) > threshold
    mask = None if image.mask is None or bool((image.mask != 0).all()) else image.mask  # all of it says nothing
    for extra in (mask, image.labels):
        content = content if extra is None else content | (extra != 0)
    content = content.flatten(0, 1).any(0)
    first, shape = [], []
    for axis, n in enumerate(content.shape):
        begin, end = _ends(content, axis)
        low, high = max(0, begin - margin), min(n, end + margin)
        size = min(n, -(-(high - low) // multiple) * multiple)
        first.append(max(0, min(low - (size - high + low) // 2, n - size)))
        shape.append(size)
    return _cropped(image, first, shape)


def crop_to_view(image: Image, *, filled: float = 0.5) -> Image:
    """Crop the empty border of an image that was enlarged to a common size, down to what the scanner saw.

    On each side, planes that contain only the lowest intensity are removed if the next plane is mostly filled, as at
    the edge of a crop. The background around a head or an organ is kept, because its outermost plane is barely filled.

    Args:
        image: The image; one channel with content is enough.
        filled: Lowest filled share of the outermost plane, within the bounding box of all content.

    Returns:
        The cropped image, its physical positions unchanged; the image itself if nothing can be cropped.
    """
    least = image.data.amin(list(range(2, image.data.ndim)), keepdim=True)
    seen = (image.data > least).flatten(0, 1).any(0)
    box = [_ends(seen, axis) for axis in range(seen.ndim)]
    first, shape = [], []
    for axis, ((low, high), n) in enumerate(zip(box, seen.shape, strict=True)):
        across = seen[tuple(slice(None) if k == axis else slice(*ends) for k, ends in enumerate(box))]
        others = [k for k in range(seen.ndim) if k != axis]
        share = across.to(torch.float32).mean(others)
        begin = low if share[low] >= filled else 0
        first.append(begin)
        shape.append((high if share[high - 1] >= filled else n) - begin)
    return _cropped(image, first, shape)


def _ends(seen: Tensor, axis: int) -> tuple[int, int]:
    """Return the first plane with content and the one after the last; all planes if there is no content."""
    planes = torch.nonzero(seen.amax([k for k in range(seen.ndim) if k != axis])).flatten().tolist()
    return (planes[0], planes[-1] + 1) if planes else (0, seen.shape[axis])


def _cropped(image: Image, first: Sequence[int], shape: Sequence[int]) -> Image:
    if tuple(shape) == image.grid.shape:
        return image
    inside = (slice(None), slice(None), *[slice(a, a + n) for a, n in zip(first, shape, strict=True)])
    parts = [None if part is None else part[inside] for part in (image.data, image.mask, image.labels)]
    data, mask, labels = parts
    assert data is not None  # noqa: S101 - an image has data
    grid = image.grid.cropped(first, shape)
    return replace(image, data=data.contiguous(), grid=grid, mask=mask, labels=labels)


def stack(images: Sequence[Image]) -> Image:
    """Combine images of equal shape into one batch.

    Labels, landmarks and covariates are kept if all images have them. If some have a mask, that of the others is their
    whole field of view. Shorter lists of landmarks are padded with NaN.

    Args:
        images: At least one.

    Raises:
        InputError: The shapes differ.
    """
    shapes = {image.grid.shape for image in images}
    if len(shapes) != 1:
        raise InputError(f"Images in a batch need one shape, got {sorted(shapes)}; resample them to a common grid.")
    affine = torch.cat([image.grid.affine for image in images])
    if bool((affine == affine[:1]).all()):
        affine = affine[:1]
    masked = any(image.mask is not None for image in images)
    masks = [mask for image in images if masked and (mask := with_field_of_view(image).mask) is not None]
    labels = [image.labels for image in images if image.labels is not None]
    landmarks = [image.landmarks for image in images if image.landmarks is not None]
    covariates = [image.covariates for image in images if image.covariates is not None]
    return Image(
        torch.cat([image.data for image in images]),
        Grid(images[0].grid.shape, affine),
        torch.cat(masks) if masks else None,
        torch.cat(labels) if len(labels) == len(images) else None,
        _cat_points(landmarks) if len(landmarks) == len(images) else None,
        torch.cat(covariates) if len(covariates) == len(images) else None,
    )


def unstacked(images: Image) -> list[Image]:
    """Return the images of a batch, each as a batch of one; the inverse of :func:`stack`.

    Example:
        >>> batch = Image(torch.rand(2, 1, 8, 8), Grid.regular((8, 8)))
        >>> [image.data.shape[0] for image in unstacked(batch)]
        [1, 1]
    """
    parts = (images.data, images.mask, images.labels, images.landmarks, images.covariates)
    affines = images.grid.affine.expand(images.batch_size, -1, -1)
    return [
        Image(
            images.data[k : k + 1],
            Grid(images.grid.shape, affines[k : k + 1]),
            *(
                None if part is None else part.expand(images.batch_size, *part.shape[1:])[k : k + 1]
                for part in parts[1:]
            ),
        )
        for k in range(images.batch_size)
    ]


def _cat_points(points: Sequence[Float[Tensor, "_ _ D"]]) -> Float[Tensor, "_ _ D"]:
    most = max(p.shape[1] for p in points)
    return torch.cat([F.pad(p, (0, 0, 0, most - p.shape[1]), value=torch.nan) for p in points])
