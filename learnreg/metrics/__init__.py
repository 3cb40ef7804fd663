"""Metrics: how well and how regularly two images are aligned."""

from learnreg.metrics.deformation import (
    folding_fraction,
    inverse_consistency,
    sd_log_jacobian,
    sd_log_jacobian_learn2reg,
)
from learnreg.metrics.landmarks import target_registration_error
from learnreg.metrics.overlap import dice_scores
from learnreg.metrics.scores import Scores, agreement, regularity, score
from learnreg.metrics.surface import hausdorff95

__all__ = [
    "Scores",
    "agreement",
    "dice_scores",
    "folding_fraction",
    "hausdorff95",
    "inverse_consistency",
    "regularity",
    "score",
    "sd_log_jacobian",
    "sd_log_jacobian_learn2reg",
    "target_registration_error",
]
