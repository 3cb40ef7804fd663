"""Similarities: ``(warped, fixed, mask) -> scalar``, lower is better."""

from learnreg.similarity.dice import Dice, dice_loss, one_hot
from learnreg.similarity.lncc import LNCC, lncc_loss
from learnreg.similarity.mixture import Mixture
from learnreg.similarity.mse import MSE, mse_loss
from learnreg.similarity.ncc import NCC, ncc_loss

__all__ = ["LNCC", "MSE", "NCC", "Dice", "Mixture", "dice_loss", "lncc_loss", "mse_loss", "ncc_loss", "one_hot"]
