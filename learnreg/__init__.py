"""learnreg: classical and learned medical image registration on one differentiable library.

The names below are imported when they are first used: ``import learnreg`` is instant.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from learnreg.grid import Grid
    from learnreg.image import Image
    from learnreg.io import read_image, write_image
    from learnreg.methods import Registration, register
    from learnreg.objective import Objective
    from learnreg.transforms import Affine, Composite, Displacement, Transform, Velocity
    from learnreg.transforms.itk import read_transform, write_transform
    from learnreg.warping import warp

# Waiting OpenMP threads must sleep, not spin: on a machine that runs anything else, a spinning pool
# makes a registration tens of times slower. It counts when torch is imported after this.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"

_EXPORTS = {
    "Affine": "learnreg.transforms",
    "Composite": "learnreg.transforms",
    "Displacement": "learnreg.transforms",
    "Grid": "learnreg.grid",
    "Image": "learnreg.image",
    "Objective": "learnreg.objective",
    "Registration": "learnreg.methods",
    "Transform": "learnreg.transforms",
    "Velocity": "learnreg.transforms",
    "read_image": "learnreg.io",
    "read_transform": "learnreg.transforms.itk",
    "register": "learnreg.methods",
    "warp": "learnreg.warping",
    "write_image": "learnreg.io",
    "write_transform": "learnreg.transforms.itk",
}
__all__ = [
    "Affine",
    "Composite",
    "Displacement",
    "Grid",
    "Image",
    "Objective",
    "Registration",
    "Transform",
    "Velocity",
    "read_image",
    "read_transform",
    "register",
    "warp",
    "write_image",
    "write_transform",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'learnreg' has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
