"""Odd, damaged and hostile rows: each is embedded rightly, or rejected for a reason a person understands."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.bad_rows import BAD_ROWS, animated_gif, picture, picture_file, rotated_jpeg, sixteen_bit
from uml_core.config import EncoderConfig
from uml_core.encoders import Encoder, RowError, build_encoder
from uml_core.encoders.pictures import open_picture

NAMES = {"image": "efficientnet_lite0", "text": "minilm_l6", "audio": "logmel"}


@pytest.fixture(scope="module")
def encoders() -> dict[str, Encoder]:
    built = {m: build_encoder(EncoderConfig(source="package", name=name), m) for m, name in NAMES.items()}
    for encoder in built.values():
        encoder.load()
    return built


@pytest.mark.parametrize(("modality", "name"), [(m, name) for m, rows in BAD_ROWS.items() for name in rows])
def test_each_is_embedded_or_rejected_with_its_reason(encoders: dict[str, Encoder], modality: str, name: str) -> None:
    row, encoder = BAD_ROWS[modality][name], encoders[modality]
    if row.reason is None:
        embeddings = encoder.encode_all([encoder.decode(row.make())], 1)
        assert embeddings.shape == (1, encoder.dim)
        assert np.isfinite(embeddings).all()
        return
    with pytest.raises(RowError) as error:
        encoder.decode(row.make())
    assert row.reason in str(error.value)
    assert "\n" not in str(error.value)


def test_modes_become_the_same_colours() -> None:
    reference = np.asarray(open_picture(picture_file()), dtype=float)
    for mode in ("RGBA", "CMYK"):
        other = np.asarray(open_picture(picture_file(picture(mode), "TIFF")), dtype=float)
        assert np.abs(other - reference).max() <= 2, mode
    grey = np.asarray(open_picture(sixteen_bit()))[..., 0].ravel()
    np.testing.assert_allclose(grey, np.arange(0, 65536, 32) / 257, atol=1)


def test_the_first_frame_upright() -> None:
    assert open_picture(animated_gif()).getpixel((3, 3)) == (255, 0, 0)
    assert open_picture(rotated_jpeg()).size == (40, 50)
    unit = Image.fromarray(np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4))
    assert np.asarray(open_picture(picture_file(unit, "TIFF"))).max() == 255
    broken = Image.fromarray(np.full((3, 4), np.nan, dtype=np.float32))
    with pytest.raises(RowError, match="NaN or infinite pixels"):
        open_picture(picture_file(broken, "TIFF"))


def test_text_is_the_same_from_a_file_and_a_table(encoders: dict[str, Encoder]) -> None:
    text = encoders["text"]
    from_file, from_table = text.decode("\ufeff a cat\r\n".encode()), text.decode("a cat")
    np.testing.assert_array_equal(from_file, from_table)
    with pytest.raises(RowError, match="broken character"):
        text.decode("a \ud83d cat")
    assert text.cost(text.decode("word " * 200_000)) == 256


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_pictures_are_read_or_refused_and_nothing_else(data: st.DataObject) -> None:
    raw = bytearray(picture_file(format=data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "BMP"]))))
    for _ in range(data.draw(st.integers(1, 8))):
        raw[data.draw(st.integers(0, min(300, len(raw) - 1)))] = data.draw(st.integers(0, 255))
    try:
        opened = open_picture(bytes(raw[: data.draw(st.integers(0, len(raw)))]))
    except RowError:
        return
    assert opened.mode == "RGB"
