"""Centroid and covariance of the intensities of an image."""

from __future__ import annotations

import torch

from learnreg.grid import apply_affine
from learnreg.image import Image
from learnreg.similarity.masking import masked_range


def center_of_mass(image: Image) -> torch.Tensor:
    """Compute the centroid of the intensities.

    Args:
        image: Intensities count above their minimum, and within the mask if there is one.

    Returns:
        ``(B, D)``, mm.
    """
    return mass_moments(image)[0]


def mass_moments(image: Image) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the centroid and the covariance of the intensities.

    Args:
        image: Intensities count above their minimum, and within the mask if there is one.

    Returns:
        The centroid ``(B, D)``, mm, and the covariance ``(B, D, D)``, mm^2.
    """
    weights = image.data.detach().sum(1)
    least = masked_range(weights.unsqueeze(1), image.mask)[0][:, 0]
    weights = weights.sub_(least)
    if image.mask is not None:
        weights = weights * (image.mask[:, 0] != 0)
    weights = weights / weights.flatten(1).sum(1).clamp(min=1e-12).reshape(-1, *([1] * image.ndim))
    # Moments along one or two axes need only the sums over the others, never the coordinates of all voxels.
    axes = list(range(image.ndim, 0, -1))  # x, y, z
    index = {axis: torch.arange(weights.shape[axis]).to(weights) for axis in axes}
    along = {axis: weights.sum([a for a in axes if a != axis]) for axis in axes}
    mean = torch.stack([along[axis] @ index[axis] for axis in axes], dim=1)
    offset = {axis: index[axis] - mean[:, k : k + 1] for k, axis in enumerate(axes)}  # (B, n)
    covariance = mean.new_zeros(len(mean), image.ndim, image.ndim)
    for i, a in enumerate(axes):
        covariance[:, i, i] = (along[a] * offset[a].square()).sum(1)
        for j, b in enumerate(axes[:i]):  # b comes after a in the array
            plane = weights.sum([c for c in axes if c not in (a, b)]) if image.ndim > 2 else weights
            covariance[:, i, j] = covariance[:, j, i] = torch.einsum("nij,ni,nj->n", plane, offset[a], offset[b])
    linear = image.grid.affine[:, : image.ndim, : image.ndim].to(mean)
    center = apply_affine(image.grid.affine.to(mean), mean.unsqueeze(1)).squeeze(1)
    return center, linear @ covariance @ linear.mT
