"""A user's own encoder: the example of docs/embed.md, and the mistakes one makes with it."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.bad_rows import picture_file
from uml_core.config import EncoderConfig
from uml_core.encoders import build_encoder, fingerprint
from uml_core.errors import InputError

EMBED_PAGE = Path(__file__).parents[2] / "docs" / "embed.md"
(EXAMPLE,) = re.findall(r"^```python\n(.*?)^```", EMBED_PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in ("my_encoders", "broken_encoders"):
        sys.modules.pop(name, None)


def own(name: str, modality: str = "image", **settings: object) -> object:
    return build_encoder(EncoderConfig.model_validate({"source": "module", "name": name, **settings}), modality)


def test_the_example_encodes_and_has_a_fingerprint_of_its_code(directory: Path) -> None:
    (directory / "my_encoders.py").write_text(EXAMPLE, encoding="utf-8")
    encoder = build_encoder(EncoderConfig(source="module", name="my_encoders:MeanColour"), "image")
    encoder = build_encoder(encoder.config, encoder.modality)  # as an actor builds it
    encoder.load()
    rows = [encoder.decode(picture_file(Image.new("RGB", (5, 4), colour))) for colour in ("red", "blue")]
    np.testing.assert_array_equal(encoder.encode_all(rows, 1), [[255, 0, 0], [0, 0, 255]])
    settings = {"dtype": "float32", "precision": "float32"}
    before = fingerprint(encoder, **settings)
    assert fingerprint(own("my_encoders:MeanColour", max_length=5), **settings) != before  # type: ignore[arg-type]
    (directory / "my_encoders.py").write_text(EXAMPLE + "# changed\n", encoding="utf-8")
    assert fingerprint(encoder, **settings) != before


def test_a_function_may_make_the_encoder_from_the_settings(directory: Path) -> None:
    make = "\ndef make(config):\n    made = MeanColour(config)\n    made.dim = config.max_length\n    return made\n"
    (directory / "my_encoders.py").write_text(EXAMPLE + make, encoding="utf-8")
    encoder = build_encoder(EncoderConfig(source="module", name="my_encoders:make", max_length=4), "image")
    assert encoder.dim == 4
    with pytest.raises(ValueError, match=r"gave 1 rows of shape \[\(3,\)\] for 1 rows of dim 4"):
        encoder.encode_all([np.zeros((2, 2, 3))], 1)
    tokens = build_encoder(EncoderConfig(source="module", name="my_encoders:make", pooling="tokens"), "image")
    with pytest.raises(ValueError, match=r"gave a ndarray; expected a list of \(tokens, dim\) arrays"):
        tokens.encode_all([np.zeros((2, 2, 3))], 1)


@pytest.mark.parametrize(
    ("name", "modality", "part"),
    [
        ("my_encoders", "image", "source module needs package.module:factory"),
        ("no_such_module:X", "image", r"importing no_such_module fails \(No module named 'no_such_module'\)"),
        ("broken_encoders:X", "image", r"importing broken_encoders fails \(No module named 'not_installed'\)"),
        ("my_encoders:MeanColor", "image", r"no function or class 'MeanColor' \(did you mean 'MeanColour'\?\)"),
        ("my_encoders:wrong", "image", "returns 7; expected an instance"),
        ("my_encoders:MeanColour", "text", "an encoder of modality image; the corpus is of text"),
    ],
)
def test_mistakes_are_told_in_one_line(directory: Path, name: str, modality: str, part: str) -> None:
    (directory / "my_encoders.py").write_text(EXAMPLE + "\nwrong = lambda config: 7\n", encoding="utf-8")
    (directory / "broken_encoders.py").write_text("import not_installed\n", encoding="utf-8")
    with pytest.raises(InputError, match=part) as error:
        own(name, modality)
    assert "\n" not in str(error.value)
