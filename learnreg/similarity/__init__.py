"""Similarities: ``(warped, fixed, mask) -> scalar``, lower is better."""

from learnreg.similarity.base import Similarity
from learnreg.similarity.correlation_ratio import CorrelationRatio, correlation_ratio_loss
from learnreg.similarity.dice import Dice, dice_loss, one_hot
from learnreg.similarity.features import FeatureSimilarity
from learnreg.similarity.huber import Huber, huber_loss
from learnreg.similarity.l1 import L1, l1_loss
from learnreg.similarity.lncc import LNCC, lncc_loss
from learnreg.similarity.mind import MIND, mind_loss, self_similarity
from learnreg.similarity.mixture import Mixture
from learnreg.similarity.mse import MSE, mse_loss
from learnreg.similarity.mutual_information import MutualInformation, mutual_information_loss
from learnreg.similarity.ncc import NCC, ncc_loss
from learnreg.similarity.ngf import NGF, ngf_loss
from learnreg.similarity.ssim import SSIM, ssim_loss, structural_similarity

__all__ = [
    "Similarity",
    "L1",
    "LNCC",
    "MIND",
    "MSE",
    "NCC",
    "NGF",
    "SSIM",
    "CorrelationRatio",
    "Dice",
    "FeatureSimilarity",
    "Huber",
    "Mixture",
    "MutualInformation",
    "correlation_ratio_loss",
    "dice_loss",
    "huber_loss",
    "l1_loss",
    "lncc_loss",
    "mind_loss",
    "mse_loss",
    "mutual_information_loss",
    "ncc_loss",
    "ngf_loss",
    "one_hot",
    "self_similarity",
    "ssim_loss",
    "structural_similarity",
]
