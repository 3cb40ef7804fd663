"""Networks: ``forward(fixed, moving) -> Transform``."""

from learnreg.networks.base import Network
from learnreg.networks.unet import UNet

__all__ = ["Network", "UNet"]
