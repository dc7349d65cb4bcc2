"""The theory of the paper (arXiv 2510.08492, section 3) on plain arrays: informations, directions, theorems.

    from uml_core.theory import Modality, exchange_rate

    x, y = Modality(Ac, Ax, noise_std=0.3), Modality(Bc, By, noise_std=0.3)
    exchange_rate(x.shared_information, y.shared_information, direction)   # samples of X that one of Y replaces

Noise is given by its standard deviation. Checks of the theorems are in `theorems`, their words and examples in
`statements`, Monte Carlo in `simulation`, the Gaussian study of the paper's figure 3 in `gaussian_study`.
"""

from uml_core.theory.information import (
    LinearGaussianModel,
    Modality,
    directional_variance,
    exchange_rate,
    is_strict_reduction,
    outperforming_direction,
    schur_information,
)

__all__ = [
    "LinearGaussianModel",
    "Modality",
    "directional_variance",
    "exchange_rate",
    "is_strict_reduction",
    "outperforming_direction",
    "schur_information",
]
