"""``det d(x + u)/dx`` of a sampled displacement, in one pass; no matrices are kept."""

from __future__ import annotations

from functools import partial

import numpy as np
from torch import Tensor

from learnreg.kernels.compiled import Array, array, compiled, in_parallel, parts, vectors


def determinant(displacement: Tensor, to_index: Tensor) -> Tensor:
    """Compute the determinant by central differences, one-sided at the border.

    Args:
        displacement: ``(B, D, *grid)``, mm.
        to_index: ``(N, D, D)``, mm to index.

    Returns:
        ``(B, *grid)``.
    """
    batch, ndim, *shape = displacement.shape
    field = array(vectors(displacement))
    inverse = np.zeros((len(to_index), 3, 3), np.float32)
    inverse[:, :ndim, :ndim] = array(to_index)
    found = displacement.new_empty(batch, *field.shape[2:])
    ranges = parts(field.shape[2], found.numel())
    in_parallel([partial(determinant_loop, field, inverse, found.numpy(), *rows) for rows in ranges])
    return found.reshape(batch, *shape)


@compiled
def determinant_loop(field: Array, inverse: Array, found: Array, first: int, last: int) -> None:
    """Fill the planes ``first`` to ``last`` of ``found``, ``(B, nz, ny, nx)``."""
    batch, _, nz, ny, nx = field.shape
    slope = np.zeros((3, nx), np.float32)  # along x
    half, one = np.float32(0.5), np.float32(1)
    for b in range(batch):
        a = inverse[b % len(inverse)]
        for z in range(first, last):
            z0, z1 = max(z - 1, 0), min(z + 1, nz - 1)
            dz = one / np.float32(max(z1 - z0, 1))
            for y in range(ny):
                y0, y1 = max(y - 1, 0), min(y + 1, ny - 1)
                dy = one / np.float32(max(y1 - y0, 1))
                for c in range(3):
                    for x in range(1, nx - 1):
                        slope[c, x] = (field[b, c, z, y, x + 1] - field[b, c, z, y, x - 1]) * half
                    if nx > 1:
                        slope[c, 0] = field[b, c, z, y, 1] - field[b, c, z, y, 0]
                        slope[c, nx - 1] = field[b, c, z, y, nx - 1] - field[b, c, z, y, nx - 2]
                for x in range(nx):
                    ux, vx, wx = slope[0, x], slope[1, x], slope[2, x]
                    uy = (field[b, 0, z, y1, x] - field[b, 0, z, y0, x]) * dy
                    vy = (field[b, 1, z, y1, x] - field[b, 1, z, y0, x]) * dy
                    wy = (field[b, 2, z, y1, x] - field[b, 2, z, y0, x]) * dy
                    uz = (field[b, 0, z1, y, x] - field[b, 0, z0, y, x]) * dz
                    vz = (field[b, 1, z1, y, x] - field[b, 1, z0, y, x]) * dz
                    wz = (field[b, 2, z1, y, x] - field[b, 2, z0, y, x]) * dz
                    j00 = one + ux * a[0, 0] + uy * a[1, 0] + uz * a[2, 0]
                    j01 = ux * a[0, 1] + uy * a[1, 1] + uz * a[2, 1]
                    j02 = ux * a[0, 2] + uy * a[1, 2] + uz * a[2, 2]
                    j10 = vx * a[0, 0] + vy * a[1, 0] + vz * a[2, 0]
                    j11 = one + vx * a[0, 1] + vy * a[1, 1] + vz * a[2, 1]
                    j12 = vx * a[0, 2] + vy * a[1, 2] + vz * a[2, 2]
                    j20 = wx * a[0, 0] + wy * a[1, 0] + wz * a[2, 0]
                    j21 = wx * a[0, 1] + wy * a[1, 1] + wz * a[2, 1]
                    j22 = one + wx * a[0, 2] + wy * a[1, 2] + wz * a[2, 2]
                    minor = j00 * (j11 * j22 - j12 * j21) - j01 * (j10 * j22 - j12 * j20)
                    found[b, z, y, x] = minor + j02 * (j10 * j21 - j11 * j20)
