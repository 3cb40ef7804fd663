"""Regularizers: ``(field, grid, weight=None) -> scalar``, in physical units, unchanged by resampling.

Beside them: consistency of two transforms, and the smoothing of fields that demons use.
"""

from learnreg.regularization.base import Regularizer
from learnreg.regularization.bending import Bending, bending_loss
from learnreg.regularization.curvature import Curvature, curvature_loss
from learnreg.regularization.diffusion import Diffusion, diffusion_loss
from learnreg.regularization.divergence import Divergence, divergence_loss
from learnreg.regularization.elasticity import Elasticity, elasticity_loss
from learnreg.regularization.folding import Folding, folding_loss
from learnreg.regularization.log_jacobian import LogJacobian, log_jacobian_loss
from learnreg.regularization.sparsity import Sparsity, sparsity_loss
from learnreg.regularization.total_variation import TotalVariation, total_variation_loss

__all__ = [
    "Regularizer",
    "Bending",
    "Curvature",
    "Diffusion",
    "Divergence",
    "Elasticity",
    "Folding",
    "LogJacobian",
    "Sparsity",
    "TotalVariation",
    "bending_loss",
    "curvature_loss",
    "diffusion_loss",
    "divergence_loss",
    "elasticity_loss",
    "folding_loss",
    "log_jacobian_loss",
    "sparsity_loss",
    "total_variation_loss",
]
