"""Regularizers: ``(field, grid) -> scalar``, in physical units, unchanged by resampling."""

from learnreg.regularization.bending import Bending, bending_loss
from learnreg.regularization.diffusion import Diffusion, diffusion_loss

__all__ = ["Bending", "Diffusion", "bending_loss", "diffusion_loss"]
