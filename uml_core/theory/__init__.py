"""The theory of the paper (arXiv 2510.08492, section 3) on plain arrays: informations, directions, theorems.

    from uml_core.theory import Modality, exchange_rate

    x, y = Modality.from_designs(Ac, Ax, noise_std=0.3), Modality.from_designs(Bc, By, noise_std=0.3)
    exchange_rate(x.shared_information, y.shared_information, direction)   # samples of X that one of Y replaces

Noise is given by its standard deviation. Theorems are in `theorems`, their counter-examples in `examples`, the
simulation in `monte_carlo`, the Gaussian study of the paper's figure 3 in `gaussian_study`.
"""

from uml_core.theory.information import (
    LinearGaussianModel,
    Modality,
    directional_variance,
    exchange_rate,
    fisher_information,
    is_strict_reduction,
    outperforming_direction,
    schur_information,
)

__all__ = [
    "LinearGaussianModel",
    "Modality",
    "directional_variance",
    "exchange_rate",
    "fisher_information",
    "is_strict_reduction",
    "outperforming_direction",
    "schur_information",
]
