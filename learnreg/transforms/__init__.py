"""Transforms: immutable maps from the fixed to the moving space."""

from learnreg.transforms.affine import Affine, align_centers
from learnreg.transforms.base import Transform
from learnreg.transforms.composite import Composite, chain
from learnreg.transforms.displacement import Displacement
from learnreg.transforms.velocity import Velocity

__all__ = ["Affine", "Composite", "Displacement", "Transform", "Velocity", "align_centers", "chain"]
