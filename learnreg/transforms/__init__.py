"""Transforms: immutable maps from the fixed to the moving space."""

from learnreg.transforms.affine import Affine, align_centers, linear_through_landmarks
from learnreg.transforms.base import Transform
from learnreg.transforms.bspline import BSpline, fit_bspline, spline_lattice
from learnreg.transforms.composite import Composite, chain
from learnreg.transforms.displacement import Displacement
from learnreg.transforms.inverse import Inverse
from learnreg.transforms.kernel import Kernel, kernel_lattice
from learnreg.transforms.landmark_spline import LandmarkSpline, spline_through_landmarks
from learnreg.transforms.sampled import Sampled, sampled_on
from learnreg.transforms.symmetric import Symmetric
from learnreg.transforms.velocity import Velocity

__all__ = [
    "Affine",
    "BSpline",
    "Composite",
    "Displacement",
    "Inverse",
    "Kernel",
    "LandmarkSpline",
    "Sampled",
    "Symmetric",
    "Transform",
    "Velocity",
    "align_centers",
    "chain",
    "fit_bspline",
    "kernel_lattice",
    "linear_through_landmarks",
    "sampled_on",
    "spline_lattice",
    "spline_through_landmarks",
]
