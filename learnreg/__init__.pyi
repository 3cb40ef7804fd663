__version__: str

from . import (
    consistency as consistency,
    data as data,
    errors as errors,
    fields as fields,
    grid as grid,
    image as image,
    integrations as integrations,
    io as io,
    landmarks as landmarks,
    methods as methods,
    metrics as metrics,
    networks as networks,
    objective as objective,
    optimization as optimization,
    regularization as regularization,
    reporting as reporting,
    sampling as sampling,
    similarity as similarity,
    smoothing as smoothing,
    supervision as supervision,
    terms as terms,
    training as training,
    transforms as transforms,
    typing as typing,
    warping as warping,
)
from .apps.pipeline import RegisteredFiles as RegisteredFiles, register_files as register_files
from .errors import InputError as InputError
from .grid import Grid as Grid
from .image import Image as Image
from .io import read_image as read_image, write_image as write_image
from .landmarks import read_landmark_pairs as read_landmark_pairs, read_landmarks as read_landmarks
from .methods import Method as Method, Registration as Registration, load_method as load_method, register as register
from .networks.checkpoint import load_checkpoint as load_checkpoint
from .objective import Objective as Objective, Penalty as Penalty
from .terms import Weighted as Weighted
from .transforms import (
    Affine as Affine,
    BSpline as BSpline,
    Composite as Composite,
    Displacement as Displacement,
    Transform as Transform,
    Velocity as Velocity,
)
from .transforms.files import read_transform as read_transform, write_transform as write_transform
from .warping import warp as warp
