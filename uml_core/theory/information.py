"""Fisher information of the linear-Gaussian model, from plain arrays.

A modality observes samples x_i = Ac_i θc + Ax_i θx + ε_i, ε_i ~ N(0, σ_i² I) (arXiv 2510.08492, section 3). Its Fisher
information about (θc, θx) is Σ_i [Ac_i Ax_i]ᵀ [Ac_i Ax_i] / σ_i², whatever θ is. What it says about θc **alone**, θx
being unknown, is the Schur complement of the nuisance block, and these add up over independent modalities.

    information = fisher_information([(Ac, Ax) for ...], noise_std=0.3)   # (C + S, C + S)
    shared = schur_information(information, Ac.shape[-1])                 # (C, C)
    covariance = joint_covariance(shared, shared_of_another_modality)     # (C, C)

Shape legend: N samples, M observed numbers a sample, D parameters, C shared parameters, S specific parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from uml_core.theory.subspaces import TOLERANCE, Floats, as_information, pseudo_inverse

Designs = npt.ArrayLike | Sequence[Any]


def fisher_information(designs: Designs, noise_std: npt.ArrayLike = 1.0) -> Floats:
    """Return Σ_i A_iᵀ A_i / σ_i², the Fisher information (D, D) of linear observations with Gaussian noise.

    Args:
        designs: stacked designs (N, M, D); or one design (M, D); or a sequence of designs (M_i, D), or of pairs
            (Ac_i, Ax_i) with shapes (M_i, C) and (M_i, S), or a pair of stacks (N, M, C) and (N, M, S).
            Pairs are joined side by side: D = C + S, shared parameters first.
        noise_std: σ, the standard deviation (not the variance) of the noise: one number, or one a sample (N,).

    Raises:
        ValueError: shapes that do not fit, or a standard deviation that is not a positive number.
    """
    samples = design_list(designs)
    stds = noise_per_sample(noise_std, len(samples))
    return as_information(sum(design.T @ design / std**2 for design, std in zip(samples, stds, strict=True)))


def schur_information(information: npt.ArrayLike, shared_dim: int, *, tolerance: float = TOLERANCE) -> Floats:
    """Return I_cc − I_cx I_xx† I_xc (C, C): what is known about the first C parameters when the others are not.

    Args:
        information: Fisher information (D, D) about (θc, θx), shared parameters first.
        shared_dim: C, from 1 to D. With C = D there is no nuisance and the information is returned as it is.
        tolerance: eigenvalues of the nuisance block below tolerance × its largest count as zero.

    Raises:
        ValueError: the matrix is no information, or C is out of range.
    """
    full = as_information(information)
    if not 1 <= shared_dim <= len(full):
        raise ValueError(f"shared_dim is {shared_dim}; expected 1 to {len(full)}, the information's width")
    shared, cross = full[:shared_dim, :shared_dim], full[:shared_dim, shared_dim:]
    nuisance = full[shared_dim:, shared_dim:]
    if not nuisance.size:
        return shared.copy()
    explained = cross @ pseudo_inverse(nuisance, tolerance=tolerance) @ cross.T
    return _without_rounding(shared - explained, shared, tolerance)


def joint_covariance(*informations: npt.ArrayLike, tolerance: float = TOLERANCE) -> Floats:
    """Return (S_1 + … + S_K)†, the covariance (C, C) of the best unbiased estimate of θc from independent modalities.

    Args:
        informations: one Schur-complement information (C, C) a modality, or stacks of them (K, C, C). A modality
            without nuisance parameters has its Fisher information as Schur complement.
        tolerance: eigenvalues below tolerance × the largest count as zero.

    Directions outside the range of the sum cannot be estimated: their variance is infinite, which no matrix can hold.
    The pseudo-inverse is 0 there, so ask `directional_variance` about a direction.
    """
    return pseudo_inverse(total_information(*informations), tolerance=tolerance)


def total_information(*informations: npt.ArrayLike) -> Floats:
    """Return the sum of informations (C, C) or stacks of them (K, C, C): independent modalities add up."""
    if not informations:
        raise ValueError("no information was given; expected at least one matrix")
    stacks = [np.asarray(given, dtype=np.float64) for given in informations]
    matrices = [matrix for stack in stacks for matrix in (stack if stack.ndim == 3 else [stack])]
    if len({matrix.shape for matrix in matrices}) > 1:
        raise ValueError(f"informations have shapes {[matrix.shape for matrix in matrices]}; expected the same for all")
    return as_information(sum(as_information(matrix) for matrix in matrices))


def design_list(designs: Designs) -> list[Floats]:
    """Return designs in any form `fisher_information` takes as a list of (M_i, D) matrices."""
    if not isinstance(designs, np.ndarray) and isinstance(designs, Sequence) and len(designs) > 0:
        if isinstance(designs, tuple) and all(np.ndim(block) == 3 for block in designs):
            return design_list(np.concatenate([np.asarray(block, dtype=np.float64) for block in designs], axis=-1))
        samples = [_joined(sample) for sample in designs]
        if all(sample.ndim == 2 for sample in samples):
            return _same_width(samples)
    stacked: Floats = np.asarray(designs, dtype=np.float64)
    if stacked.ndim == 2:
        stacked = stacked[None]
    if stacked.ndim != 3 or stacked.size == 0:
        raise ValueError(f"designs have shape {stacked.shape}; expected (N, M, D), (M, D), or a sequence of (M_i, D)")
    return _same_width(list(stacked))


def noise_per_sample(noise_std: npt.ArrayLike, num_samples: int) -> Floats:
    """Return noise standard deviations (N,) from one number or one a sample."""
    stds: Floats = np.asarray(noise_std, dtype=np.float64)
    if stds.ndim > 1 or (stds.ndim == 1 and len(stds) != num_samples):
        raise ValueError(f"noise_std has shape {stds.shape}; expected one number, or ({num_samples},), one a sample")
    if not (np.isfinite(stds).all() and (stds > 0).all()):
        raise ValueError(f"noise_std is {noise_std!r}; expected a standard deviation > 0")
    return np.broadcast_to(stds, (num_samples,)).astype(np.float64)


def _joined(sample: Any) -> Floats:
    """Return one sample's design: a matrix as it is, a pair (Ac_i, Ax_i) side by side."""
    if isinstance(sample, (tuple, list)) and all(np.ndim(block) == 2 for block in sample):
        return np.concatenate([np.asarray(block, dtype=np.float64) for block in sample], axis=1)
    joined: Floats = np.asarray(sample, dtype=np.float64)
    return joined


def _same_width(samples: list[Floats]) -> list[Floats]:
    if len({sample.shape[1] for sample in samples}) > 1:
        raise ValueError(f"designs have widths {sorted({s.shape[1] for s in samples})}; expected D columns in each")
    return samples


def _without_rounding(difference: Floats, minuend: Floats, tolerance: float) -> Floats:
    """Return a difference of informations with what is only rounding error of the larger one set to zero."""
    values, vectors = np.linalg.eigh((difference + difference.T) / 2)
    floor = tolerance * float(np.abs(minuend).max(initial=0.0))
    cleaned: Floats = (vectors * np.where(values > floor, values, 0.0)) @ vectors.T
    return (cleaned + cleaned.T) / 2
