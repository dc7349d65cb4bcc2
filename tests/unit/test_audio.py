"""Audio: what decoding keeps, resamples and refuses, on real files; and that a clip's embedding is its own."""

from __future__ import annotations

import importlib.util
import io
import sys
from types import ModuleType

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from uml_core.config import EncoderConfig
from uml_core.encoders import Encoder, RowError, build_encoder, fingerprint
from uml_core.encoders.audio import packaged_audio as audio
from uml_core.encoders.audio.packaged_audio import MOONSHINE_MIN_SAMPLES, SAMPLE_RATE, decode_audio
from uml_core.errors import InputError

Samples = npt.NDArray[np.float32]

needs_moonshine = pytest.mark.skipif(
    importlib.util.find_spec("moonshine_voice") is None,
    reason="the weights come in a package: pip install --no-deps -r examples/tuxpaint/requirements.txt",
)


def sine(hertz: float = 440.0, *, rate: int = SAMPLE_RATE, seconds: float = 1.0, amplitude: float = 0.5) -> Samples:
    return (amplitude * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)).astype(np.float32)


def noise(seconds: float, seed: int) -> Samples:
    samples = np.random.default_rng(seed).normal(0, 0.1, round(SAMPLE_RATE * seconds))
    return samples.astype(np.float32)


def sound_file(samples: Samples, *, rate: int = SAMPLE_RATE, ending: str = "wav", subtype: str | None = None) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=ending.upper(), subtype=subtype)
    return buffer.getvalue()


def decode(raw: bytes, *, max_seconds: float = 10.0, min_samples: int = 0) -> Samples:
    return decode_audio(raw, sample_rate=SAMPLE_RATE, max_seconds=max_seconds, min_samples=min_samples)


def loudest_hertz(samples: Samples) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(np.fft.rfftfreq(len(samples), 1 / SAMPLE_RATE)[spectrum.argmax()])


def encoder(name: str, **options: object) -> Encoder:
    return build_encoder(EncoderConfig(source="package", name=name, **options), "audio")


@pytest.mark.parametrize("ending", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100])
def test_every_format_and_rate_keeps_frequency_length_and_loudness(ending: str, rate: int) -> None:
    samples = decode(sound_file(sine(rate=rate, seconds=1.0), rate=rate, ending=ending))
    assert samples.dtype == np.float32
    assert samples.ndim == 1
    assert len(samples) == pytest.approx(SAMPLE_RATE, rel=0.001)
    assert loudest_hertz(samples) == pytest.approx(440, abs=2)
    assert np.sqrt(np.mean(samples[4000:12000] ** 2)) == pytest.approx(0.5 / np.sqrt(2), abs=0.01)


def test_a_tone_above_the_new_band_is_filtered_away() -> None:
    samples = decode(sound_file(sine(15_000, rate=44_100), rate=44_100))
    assert np.abs(samples[2000:-2000]).max() < 1e-3  # not folded down to 1 kHz


def test_eight_kilohertz_stereo_becomes_the_mean_of_its_channels() -> None:
    left, right = sine(300, rate=8_000), sine(1_000, rate=8_000)
    stereo = decode(sound_file(np.stack([left, right], axis=1), rate=8_000, subtype="FLOAT"))
    mono = decode(sound_file((left + right) / 2, rate=8_000, subtype="FLOAT"))
    np.testing.assert_allclose(stereo, mono, atol=1e-6)


def test_a_long_clip_is_cut_from_its_start_and_a_short_one_is_not_padded() -> None:
    samples = noise(1.0, 0)
    raw = sound_file(samples, subtype="FLOAT")
    np.testing.assert_array_equal(decode(raw, max_seconds=0.25), samples[:4000])
    np.testing.assert_array_equal(decode(raw), samples)


def test_zeros_are_appended_only_up_to_the_shortest_input() -> None:
    samples = noise(0.02, 0)
    padded = decode(sound_file(samples, subtype="FLOAT"), min_samples=400)
    np.testing.assert_array_equal(padded, np.pad(samples, (0, 80)))
    assert len(decode(sound_file(noise(0.5, 0)), min_samples=400)) == 8000


def bad_value(value: float) -> Samples:
    samples = sine()
    samples[100] = value
    return samples


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"this is a text file\n" * 50, "not a sound file that can be read"),
        (b"\xff\xfb" + bytes(500), "damaged or cut off"),
        (sound_file(sine(), ending="flac")[:5000], "not a sound file that can be read"),
        (sound_file(sine(), ending="ogg")[:1000], "not a sound file that can be read"),
        (sound_file(sine())[:30], "not a sound file that can be read"),
        (sound_file(sine())[:-800], "cut off: 0.97 s of the sound are there"),
        (sound_file(noise(9.0, 0), ending="ogg")[:-300], "cut off: .* s of the sound are there"),
        (sound_file(noise(2.0, 0), ending="mp3")[:-6000], "cut off: .* s of the sound are there"),
        (sound_file(sine()[:0]), "zero length"),
        (sound_file(sine(seconds=0.005)), "audio of 5.0 ms; at least 10 ms are needed"),
        (sound_file(bad_value(float("nan")), subtype="FLOAT"), "NaN, infinite or immense"),
        (sound_file(bad_value(float("nan")), rate=44_100, subtype="FLOAT"), "NaN, infinite or immense"),
        (sound_file(bad_value(float("inf")), subtype="FLOAT"), "NaN, infinite or immense"),
        (sound_file(0 * sine()), "silent audio"),
        (sound_file(np.stack([sine(), -sine()], axis=1), subtype="FLOAT"), "silent audio"),
        (sound_file(sine(), rate=5), "sample rate of 5 Hz"),
    ],
)
def test_bad_files_are_refused_with_a_plain_reason(raw: bytes, reason: str) -> None:
    with pytest.raises(RowError, match=reason):
        decode(raw)


def test_a_file_that_is_cut_off_behind_the_seconds_that_are_read_is_read() -> None:
    whole = sound_file(noise(1.0, 0))
    np.testing.assert_array_equal(decode(whole[:-800], max_seconds=0.9), decode(whole, max_seconds=0.9))
    streamed = whole[:40] + b"\xff\xff\xff\xff" + whole[44:]  # written to a pipe: its length was not known
    np.testing.assert_array_equal(decode(streamed), decode(whole))


def test_aac_is_read_with_package_av_or_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "av", ModuleType("av"))  # as a folder of that name is imported
        with pytest.raises(RowError, match="as m4a or aac: pip install av"):
            decode(b"\x00\x00\x00\x1cftypM4A " + bytes(100))
    import av

    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(sine().astype(np.float32)[None], format="fltp", layout="mono")
        frame.sample_rate = SAMPLE_RATE
        container.mux([*stream.encode(frame), *stream.encode(None)])
    assert loudest_hertz(decode(file.getvalue())) == pytest.approx(440, abs=2)
    with pytest.raises(RowError, match="not a sound file that can be read"):
        decode(file.getvalue()[:-900])


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_files_are_read_or_refused_and_nothing_else(data: st.DataObject) -> None:
    # mp3 is left out: its decoder writes what it thinks of each file to the terminal.
    ending = data.draw(st.sampled_from(["wav", "flac", "ogg"]))
    raw = bytearray(sound_file(sine(seconds=0.2), ending=ending))
    for _ in range(data.draw(st.integers(1, 8))):
        raw[data.draw(st.integers(0, min(300, len(raw) - 1)))] = data.draw(st.integers(0, 255))
    try:
        samples = decode(bytes(raw[: data.draw(st.integers(0, len(raw)))]))
    except RowError:
        return
    assert np.isfinite(samples).all()
    assert 0 < len(samples) <= 160_000


def test_logmel_of_a_louder_clip_has_a_larger_mean_and_the_same_deviation() -> None:
    logmel = encoder("logmel")
    logmel.load()
    quiet, loud = logmel.encode([noise(1.0, 0), 2 * noise(1.0, 0)])
    np.testing.assert_allclose(loud[:64] - quiet[:64], np.log(4), atol=1e-3)  # power: the square
    np.testing.assert_allclose(loud[64:], quiet[64:], atol=1e-3)


def test_logmel_tokens_are_the_frames_that_are_pooled() -> None:
    frames, pooled = encoder("logmel", pooling="tokens"), encoder("logmel")
    clips = [noise(1.0, 0), noise(0.4, 1)]
    sequences, embeddings = frames.encode_all(clips, batch_size=2), pooled.encode_all(clips, batch_size=2)
    assert [sequence.shape for sequence in sequences] == [(98, frames.dim), (38, 64)]  # 1 + (S - 400) // 160
    means = np.stack([sequence.mean(axis=0) for sequence in sequences])
    np.testing.assert_allclose(means, embeddings[:, :64], atol=1e-4)


def test_logmel_hears_pitch_and_change() -> None:
    logmel = encoder("logmel")
    logmel.load()
    low, high, beeps = logmel.encode([sine(300), sine(3000), sine(300) * (np.arange(16_000) % 4000 < 2000)])
    assert low[:64].argmax() < high[:64].argmax()
    assert beeps[64:].mean() > 3 * low[64:].mean()


@pytest.mark.parametrize("name", ["logmel", pytest.param("moonshine_tiny", marks=needs_moonshine)])
def test_a_clip_has_one_embedding_whatever_its_batch(name: str) -> None:
    clips = [noise(seconds, seed) for seed, seconds in enumerate((0.4, 1.7, 0.06, 0.4, 1.0))]
    chosen = encoder(name)
    chosen.load()
    alone = np.concatenate([chosen.encode([clip]) for clip in clips])
    assert alone.shape == (5, chosen.dim)
    assert alone.dtype == np.float32
    assert np.isfinite(alone).all()
    for batch_size in (1, 2, 5):
        np.testing.assert_array_equal(chosen.encode_all(clips, batch_size), alone)
    assert len({row.tobytes() for row in alone}) == 5
    again = build_encoder(chosen.config, chosen.modality)  # as an actor builds it
    again.load()
    np.testing.assert_array_equal(again.encode(clips), alone)


@needs_moonshine
def test_the_shortest_clip_fits_moonshine() -> None:
    moonshine = encoder("moonshine_tiny")
    moonshine.load()
    shortest = moonshine.decode(sound_file(noise(0.01, 0)))
    assert len(shortest) == MOONSHINE_MIN_SAMPLES
    assert moonshine.encode([shortest]).shape == (1, 288)


def test_moonshine_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio.importlib.util, "find_spec", lambda name: None)
    moonshine = encoder("moonshine_tiny")
    assert moonshine.dim == 288
    with pytest.raises(InputError, match=r"pip install moonshine-voice==0\.0\.65") as error:
        moonshine.identity()
    assert "\n" not in str(error.value)


def test_missing_weights_are_named() -> None:
    with pytest.raises(InputError, match=r"encoders\.audio\.weights is /no/such/place"):
        encoder("moonshine_tiny", weights="/no/such/place").identity()


def test_what_decides_the_numbers_is_in_the_fingerprint() -> None:
    prints = {
        fingerprint(encoder("logmel", max_seconds=seconds), dtype="float32", precision="float32") for seconds in (5, 10)
    }
    assert len(prints) == 2
