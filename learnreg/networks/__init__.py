"""Networks: ``forward(fixed, moving) -> Transform``."""

from learnreg.networks.base import Network
from learnreg.networks.pyramid import Pyramid
from learnreg.networks.unet import UNet

__all__ = ["Network", "Pyramid", "UNet"]
