"""Random resized crop and horizontal flip of a batch of pictures, drawn from (seed, step): the same after a resume.

Every sample's crop is drawn for the whole batch over all ranks, and a rank takes its own: how many ranks there are
changes nothing. A crop is stretched back to the picture's size, which is never smaller, so bilinear reads suffice.

Shape legend: B batch, H height, W width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

Shares = npt.NDArray[np.float64]
ASPECTS = (3 / 4, 4 / 3)  # of a crop, width over height, before it is cut to the picture


@dataclass(frozen=True)
class Crops:
    """For B pictures: the crop's centre and size as shares of the picture, (x, y) each, and whether it is flipped."""

    centre_B2: npt.NDArray[np.float64]
    size_B2: npt.NDArray[np.float64]
    flipped_B: npt.NDArray[np.bool_]

    @classmethod
    def draw(cls, num_pictures: int, *, seed: int, step: int, min_crop: float) -> Crops:
        """Draw an area in [min_crop, 1] of the picture, an aspect ratio, a place and a flip for each picture."""
        rng = np.random.default_rng([seed % 2**32, step, 0xC409])
        area_B = rng.uniform(min_crop, 1, num_pictures)
        aspect_B = np.exp(rng.uniform(math.log(ASPECTS[0]), math.log(ASPECTS[1]), num_pictures))
        size_B2 = np.minimum(1, np.stack([np.sqrt(area_B * aspect_B), np.sqrt(area_B / aspect_B)], axis=1))
        centre_B2 = size_B2 / 2 + rng.uniform(size=(num_pictures, 2)) * (1 - size_B2)
        return cls(centre_B2, size_B2, rng.uniform(size=num_pictures) < 0.5)

    def share(self, rows: slice) -> Crops:
        """Return the crops of one rank's samples."""
        return Crops(self.centre_B2[rows], self.size_B2[rows], self.flipped_B[rows])


def crop_and_flip(picture_B3HW: Tensor, crops: Crops) -> Tensor:
    """Return each picture's crop at the picture's own size (B, 3, H, W), float32 on the scale of its input."""
    height, width = picture_B3HW.shape[2:]
    flip_B = np.where(crops.flipped_B, -1.0, 1.0)
    # Upright crops need no product of matrices for their grid, and one plane after the other is read faster: together
    # half the time of affine_grid and of a picture with its channels last.
    grid_BHW2 = torch.empty(len(flip_B), height, width, 2, device=picture_B3HW.device)
    grid_BHW2[..., 0] = _places(width, crops.size_B2[:, 0] * flip_B, crops.centre_B2[:, 0])[:, None, :]
    grid_BHW2[..., 1] = _places(height, crops.size_B2[:, 1], crops.centre_B2[:, 1])[:, :, None]
    pixels_B3HW = picture_B3HW.to(torch.float32, memory_format=torch.contiguous_format)
    return functional.grid_sample(pixels_B3HW, grid_BHW2, mode="bilinear", padding_mode="border", align_corners=False)


def _places(num_pixels: int, size_B: Shares, centre_B: Shares) -> Tensor:
    """Return where an axis's pixels (B, N) are read, float32: grid_sample's picture reaches from -1 to 1."""
    middles_N = (2 * np.arange(num_pixels) + 1) / num_pixels - 1
    place_BN = size_B[:, None] * middles_N + (2 * centre_B[:, None] - 1)
    return torch.from_numpy(place_BN.astype(np.float32))
