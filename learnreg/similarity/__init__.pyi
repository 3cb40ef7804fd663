from .base import Similarity as Similarity
from .correlation_ratio import CorrelationRatio as CorrelationRatio, correlation_ratio_loss as correlation_ratio_loss
from .dice import Dice as Dice, dice_loss as dice_loss, one_hot as one_hot
from .features import FeatureSimilarity as FeatureSimilarity
from .huber import Huber as Huber, huber_loss as huber_loss
from .l1 import L1 as L1, l1_loss as l1_loss
from .lncc import LNCC as LNCC, lncc_loss as lncc_loss
from .masking import masked_mean as masked_mean
from .mind import MIND as MIND, mind_loss as mind_loss, self_similarity as self_similarity
from .mixture import Mixture as Mixture
from .mse import MSE as MSE, mse_loss as mse_loss
from .mutual_information import (
    MutualInformation as MutualInformation,
    mutual_information_loss as mutual_information_loss,
)
from .ncc import NCC as NCC, ncc_loss as ncc_loss
from .ngf import NGF as NGF, ngf_loss as ngf_loss
from .ssim import SSIM as SSIM, ssim_loss as ssim_loss, structural_similarity as structural_similarity
