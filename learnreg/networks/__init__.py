"""Networks: ``forward(fixed, moving) -> Transform``."""

from learnreg.networks.adapters import FieldNetwork, as_network
from learnreg.networks.base import Network
from learnreg.networks.cascade import Cascade
from learnreg.networks.conditioned import Conditioned
from learnreg.networks.keypoints import KeypointNetwork
from learnreg.networks.laplacian import LaplacianPyramid
from learnreg.networks.linear import AffineNetwork
from learnreg.networks.pyramid import Pyramid
from learnreg.networks.swin import SwinNetwork
from learnreg.networks.template import ConditionalTemplate, LearnedTemplate
from learnreg.networks.unet import UNet
from learnreg.networks.unrolled import Unrolled

__all__ = [
    "AffineNetwork",
    "Cascade",
    "ConditionalTemplate",
    "Conditioned",
    "FieldNetwork",
    "KeypointNetwork",
    "LaplacianPyramid",
    "LearnedTemplate",
    "Network",
    "Pyramid",
    "SwinNetwork",
    "UNet",
    "Unrolled",
    "as_network",
]
