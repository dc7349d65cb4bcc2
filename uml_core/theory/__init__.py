"""The theory of the paper (arXiv 2510.08492, section 3) on plain arrays: informations, directions, theorems.

    from uml_core.theory import fisher_information, schur_information, exchange_rate

    of_x = schur_information(fisher_information([(Ac, Ax) for ...], noise_std=0.3), shared_dim=10)
    of_y = schur_information(fisher_information([(Bc, By) for ...], noise_std=0.3), shared_dim=10)
    exchange_rate(of_x, of_y, direction)   # how many samples of X one sample of Y replaces

Noise is given by its standard deviation. Theorems are in `theorems`, their counter-examples in `examples`, the
simulation in `monte_carlo`, the Gaussian study of the paper's figure 3 in `autoencoder`.
"""

from uml_core.theory.directions import (
    directional_variance,
    exchange_rate,
    is_strict_reduction,
    outperforming_direction,
)
from uml_core.theory.information import fisher_information, joint_covariance, schur_information, total_information
from uml_core.theory.model import LeastSquares, LinearGaussianModel, Modality, least_squares
from uml_core.theory.subspaces import TOLERANCE, pseudo_inverse

__all__ = [
    "TOLERANCE",
    "LeastSquares",
    "LinearGaussianModel",
    "Modality",
    "directional_variance",
    "exchange_rate",
    "fisher_information",
    "is_strict_reduction",
    "joint_covariance",
    "least_squares",
    "outperforming_direction",
    "pseudo_inverse",
    "schur_information",
    "total_information",
]
