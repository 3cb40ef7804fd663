from .deformation import (
    folding_fraction as folding_fraction,
    inverse_consistency as inverse_consistency,
    non_diffeomorphic_volume as non_diffeomorphic_volume,
    sd_log_jacobian as sd_log_jacobian,
    sd_log_jacobian_learn2reg as sd_log_jacobian_learn2reg,
)
from .landmarks import robustness30 as robustness30, target_registration_error as target_registration_error
from .overlap import dice_scores as dice_scores
from .scores import Scores as Scores, score as score
from .surface import (
    average_surface_distance as average_surface_distance,
    hausdorff95 as hausdorff95,
    surface_dice as surface_dice,
)
