"""A fingerprint is found once for all that decides it, and kept where a corpus is embedded under it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines import known_fingerprints
from pipelines.known_fingerprints import known_or_found
from uml_core.config import EncoderConfig

PACKAGED = EncoderConfig(source="package", name="minilm_l6")


def found(store: Path, encoder: EncoderConfig = PACKAGED, precision: str = "float32") -> bool:
    """Whether the fingerprint was not known."""
    asked: list[str] = []

    def find() -> str:
        asked.append("abc")
        return "abc"

    assert known_or_found(str(store), "names", encoder, ("text", precision), find) == "abc"
    return bool(asked)


def test_it_is_known_once_the_corpus_is_embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(tmp_path)
    assert not list(tmp_path.iterdir()), "nothing is written before that"
    (tmp_path / "names" / "abc").mkdir(parents=True)
    assert [found(tmp_path), found(tmp_path)] == [True, False]
    assert found(tmp_path, precision="bfloat16")
    assert found(tmp_path, PACKAGED.model_copy(update={"pooling": "cls"}))
    monkeypatch.setattr(known_fingerprints, "_version", lambda package: "another")
    assert found(tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(known_fingerprints, "_code", lambda: "another")
    assert found(tmp_path)


@pytest.mark.parametrize(
    "encoder",
    [
        EncoderConfig(source="module", name="mine:Encoder"),
        EncoderConfig(source="transformers", name="gpt2"),
        EncoderConfig(source="timm", name="local-dir:weights"),
        EncoderConfig(source="timm", name="vit_tiny_patch16_224", weights="weights.pt"),
    ],
    ids=["own", "hub", "folder", "file"],
)
def test_what_may_change_under_its_name_is_looked_at_again(tmp_path: Path, encoder: EncoderConfig) -> None:
    (tmp_path / "names" / "abc").mkdir(parents=True)
    assert [found(tmp_path, encoder), found(tmp_path, encoder)] == [True, True]
