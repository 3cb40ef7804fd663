from .base import Regularizer as Regularizer
from .bending import Bending as Bending, bending_loss as bending_loss
from .curvature import Curvature as Curvature, curvature_loss as curvature_loss
from .diffusion import Diffusion as Diffusion, diffusion_loss as diffusion_loss
from .divergence import Divergence as Divergence, divergence_loss as divergence_loss
from .elasticity import Elasticity as Elasticity, elasticity_loss as elasticity_loss
from .folding import Folding as Folding, folding_loss as folding_loss
from .log_jacobian import LogJacobian as LogJacobian, log_jacobian_loss as log_jacobian_loss
from .sparsity import Sparsity as Sparsity, sparsity_loss as sparsity_loss
from .total_variation import TotalVariation as TotalVariation, total_variation_loss as total_variation_loss
