from .affine import (
    Affine as Affine,
    LinearKind as LinearKind,
    align_centers as align_centers,
    homogeneous as homogeneous,
    linear_basis as linear_basis,
    linear_through_landmarks as linear_through_landmarks,
)
from .base import Transform as Transform
from .batches import unstacked_transforms as unstacked_transforms
from .bspline import BSpline as BSpline, fit_bspline as fit_bspline, spline_lattice as spline_lattice
from .composite import Composite as Composite, chain as chain
from .displacement import Displacement as Displacement
from .files import read_transform as read_transform, write_transform as write_transform
from .inverse import (
    Inverse as Inverse,
    Residual as Residual,
    inverse_of as inverse_of,
    inverse_residual as inverse_residual,
)
from .itk import from_itk as from_itk, to_itk as to_itk
from .kernel import Kernel as Kernel, kernel_lattice as kernel_lattice
from .landmark_spline import LandmarkSpline as LandmarkSpline, spline_through_landmarks as spline_through_landmarks
from .lattice import FreeForm as FreeForm
from .radial_functions import wendland as wendland
from .sampled import Sampled as Sampled
from .symmetric import Symmetric as Symmetric
from .velocity import Velocity as Velocity
