"""Audio encoders: log-mel statistics, which need no weights, and the Moonshine speech encoder from a pip package.

In: the bytes of a sound file (wav, flac, ogg, mp3, ...; m4a and aac with package av). Out: one embedding a clip. Both
encoders run on the CPU and encode one clip at a time, never padded to its batch, so a clip has the same embedding
whatever else is in its batch.

Shape legend: S samples, F frames, M mel bands, D embedding width.
"""

from __future__ import annotations

import functools
import importlib.util
import io
import re
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import soundfile
import soxr
import torch
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from uml_core.config import EncoderConfig
from uml_core.corpora.content import Raw
from uml_core.encoders.base import Decoded, Embeddings, Encoder, TokenSequences
from uml_core.encoders.weights import fetched, file_digest
from uml_core.errors import InputError, RowError, listing

Floats = npt.NDArray[np.float32]
SAMPLE_RATE = 16_000  # Hz, of both encoders
MIN_SECONDS = 0.01  # a shorter clip says nothing
SOURCE_RATES = range(1_000, 768_001)  # Hz; a header beyond is damaged
# What libsndfile says of a wav, aiff or au that is shorter than its header has it; a size that stands for "unknown".
CHUNK_SIZES, STREAMED = re.compile(r"(?:data|SSND|Data Size)\s*: (\d+) \(should be (\d+)\)"), 2**31 - 2**16
XING, MP3_SLACK = re.compile(rb"Xing|Info"), 2304  # the header with an mp3's length; two frames of samples
ADTS = (b"\xff\xf1", b"\xff\xf9")  # how a bare aac starts
RESAMPLING = "HQ"  # soxr's high quality: 20 bits, linear phase

# Log-mel: 25 ms frames every 10 ms, the usual front end of speech and sound classifiers.
FRAME, HOP, FFT = 400, 160, 512  # samples
MEL_BANDS, LOWEST_HZ = 64, 60.0
MEL_FLOOR = 1e-10  # power under which a band counts as silent: -100 dB

MOONSHINE_PACKAGE = "moonshine-voice==0.0.65"  # later wheels carry no weights
MOONSHINE_FILE = "encoder_model.ort"
# The shortest input with one output frame: ((((S - 127) // 64 + 1 - 7) // 3 + 1) - 3) // 2 + 1 = 1, as its graph says.
MOONSHINE_MIN_SAMPLES = 895


def decode_audio(raw: bytes, *, sample_rate: int, max_seconds: float, min_samples: int = 0) -> Floats:
    """A sound file that libsndfile reads, as one channel (S,) at `sample_rate` in Hz; full scale is 1.

    Rules, in this order: only the first `max_seconds` are read; channels are averaged; another sample rate is
    resampled by soxr in high quality; zeros are appended only if there are fewer than `min_samples`, the shortest input
    of the encoder. Nothing is normalised: a louder clip has larger samples. A file that was cut off within the seconds
    that are read is refused, where it tells its length: an mp3 without a Xing header and a streamed wav do not.

    Raises:
        RowError: unreadable bytes, a file that was cut off, no samples, less than 10 ms, NaN or infinite samples, or
            digital silence.
    """
    if not raw:
        raise RowError("empty file (0 bytes)")
    limit_s = max(max_seconds, MIN_SECONDS)
    source_SC, rate = read_samples(raw, limit_s)
    seconds = len(source_SC) / rate
    if not len(source_SC):
        raise RowError("audio of zero length")
    if seconds < MIN_SECONDS:
        raise RowError(f"audio of {seconds * 1000:.1f} ms; at least {MIN_SECONDS * 1000:.0f} ms are needed")
    mono_S = source_SC.mean(axis=1, dtype=np.float32)
    if not mono_S.any():
        raise RowError("silent audio: every sample is zero once its channels are averaged")
    if rate != sample_rate and np.isfinite(mono_S).all():
        mono_S = soxr.resample(mono_S, rate, sample_rate, quality=RESAMPLING)
    if not np.isfinite(mono_S).all():
        raise RowError("audio with NaN, infinite or immense samples")
    kept_S = mono_S[: round(limit_s * sample_rate)]
    padded_S: Floats = np.pad(kept_S, (0, max(0, min_samples - len(kept_S))))
    return padded_S


def read_samples(raw: bytes, max_seconds: float) -> tuple[Floats, int]:
    """The samples of the first `max_seconds` (S, channels), and the file's own sample rate."""
    try:
        with soundfile.SoundFile(io.BytesIO(raw)) as file:
            rate = int(file.samplerate)
            if rate not in SOURCE_RATES:
                raise RowError(f"sample rate of {rate} Hz; {SOURCE_RATES[0]} to {SOURCE_RATES[-1]} Hz are read")
            wanted = round(max_seconds * rate)
            samples_SC: Floats = file.read(min(int(file.frames), wanted), dtype="float32", always_2d=True)
            if len(samples_SC) < wanted:
                _check_whole(raw, file, len(samples_SC))
            return samples_SC, rate
    except soundfile.LibsndfileError as error:
        if raw[4:8] == b"ftyp" or raw[:2] in ADTS:
            return _read_aac(raw, max_seconds)
        # libsndfile says "does not exist" of an mp3 whose content it cannot make out.
        known = "does not exist" not in error.error_string
        reason = error.error_string.removeprefix("Error : ").strip().rstrip(".") if known else "damaged or cut off"
        raise RowError(f"not a sound file that can be read: {reason}") from None


def _check_whole(raw: bytes, file: soundfile.SoundFile, num_read: int) -> None:
    """Refuse a file that says it holds more samples than were read. Raises RowError."""
    present, told = len(raw), 0
    if file.format == "OGG":
        page = raw.rfind(b"OggS")
        lengths = raw[page + 27 : page + 27 + raw[page + 26]] if page + 26 < len(raw) else b""
        is_last = raw[page + 5] & 4 if lengths else 0  # the flag of a stream's last page
        told = page + 27 + len(lengths) + sum(lengths) if is_last else present + 1
    elif file.format == "MP3" and XING.search(raw):
        present, told = num_read, int(file.frames) - MP3_SLACK
    elif found := CHUNK_SIZES.search(file.extra_info):
        told, present = map(int, found.groups())
        told = told if told < STREAMED else 0
    if told > present:
        raise RowError(f"cut off: {num_read / file.samplerate:.2f} s of the sound are there, and the file goes on")


def _read_aac(raw: bytes, max_seconds: float) -> tuple[Floats, int]:
    """What `read_samples` gives, of the formats that package av reads and libsndfile does not."""
    try:
        from av import AudioResampler, FFmpegError
        from av import open as open_container
    except ImportError:
        raise RowError("a sound file that libsndfile does not read, as m4a or aac: pip install av") from None
    blocks: list[Any] = []
    try:
        with open_container(io.BytesIO(raw), "r") as container:
            stream, resampler = container.streams.audio[0], AudioResampler("fltp")
            rate, wanted = int(stream.rate), round(max_seconds * int(stream.rate))
            for frame in container.decode(stream):
                blocks += [block.to_ndarray().T for block in resampler.resample(frame)]
                if sum(map(len, blocks)) >= wanted:
                    break
    except (FFmpegError, IndexError) as error:
        raise RowError(f"not a sound file that can be read: {error}") from None
    if not blocks:
        raise RowError("audio of zero length")
    return np.concatenate(blocks), rate


class _ClipEncoder(Encoder):
    """What both encoders share: 16 kHz mono clips, encoded one by one."""

    modality = "audio"
    min_samples: int
    poolings: tuple[str, ...]
    pooled_by = "mean"

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(config)
        if config.pooling not in self.poolings:
            raise InputError(
                f"encoders.audio.pooling is '{config.pooling}'; {config.name} has {listing(self.poolings)}"
            )

    def decode(self, raw: Raw) -> Decoded:
        assert isinstance(raw, bytes)
        return decode_audio(
            raw, sample_rate=SAMPLE_RATE, max_seconds=self.config.max_seconds, min_samples=self.min_samples
        )

    def encode(self, rows: Sequence[Decoded]) -> Embeddings | TokenSequences:
        """Encode B clips (S,) of any lengths into (B, D), or into B arrays of frames (F_b, D), each by itself."""
        frames = [self._frames(np.asarray(row, dtype=np.float32)) for row in rows]
        return frames if self.yields_tokens else np.stack([self._pool(frames_FD) for frames_FD in frames])

    @abstractmethod
    def _frames(self, clip_S: Floats) -> Floats:
        """One clip (S,) as its frames (F, D)."""

    def _pool(self, frames_FD: Floats) -> Floats:
        """The frames (F, D) of one clip as its embedding (D,)."""
        embedding_D: Floats = frames_FD.mean(axis=0)
        return embedding_D

    def identity(self) -> dict[str, Any]:
        return {
            "source": self.config.source,
            "name": self.config.name,
            "weights": self._revision(),
            "decoding": {
                "sample_rate": SAMPLE_RATE,
                "max_seconds": self.config.max_seconds,
                "min_samples": self.min_samples,
                "resampling": f"soxr {RESAMPLING}",
            },
            "pooling": "tokens" if self.yields_tokens else self.pooled_by,
        }

    def _revision(self) -> str | None:
        """What identifies the weights; None where there are none."""
        return None


class LogMelStatistics(_ClipEncoder):
    """Mean and standard deviation over time of a 64-band log-mel spectrogram: 128 wide, no weights.

    Mel scale of O'Shaughnessy as in HTK: 2595 log10(1 + f / 700); triangular filters from 60 Hz to 8 kHz; natural
    logarithm of the power. It hears timbre, pitch and loudness, hardly words: enough for sound effects and voices.
    With `pooling: tokens`, the spectrogram itself: a frame of 64 bands every 10 ms.
    """

    min_samples = FRAME
    poolings = ("auto", "tokens")
    pooled_by = "mean and standard deviation over frames"

    @property
    def dim(self) -> int:
        """A mean and a standard deviation for each band; of a frame, the bands."""
        return MEL_BANDS if self.yields_tokens else 2 * MEL_BANDS

    def identity(self) -> dict[str, Any]:
        frames = {"frame": FRAME, "hop": HOP, "fft": FFT, "bands": MEL_BANDS, "lowest_hz": LOWEST_HZ}
        return {**super().identity(), "spectrogram": frames}

    def load(self, *, device: str = "cpu", precision: str = "float32") -> None:
        """Nothing to load: it runs on the CPU in float64 wherever the others run."""

    def _frames(self, clip_S: Floats) -> Floats:
        log_power_MF: Floats = spectrogram(
            clip_S,
            window_function(FRAME, "hann"),
            frame_length=FRAME,
            hop_length=HOP,
            fft_length=FFT,
            power=2.0,
            center=False,
            mel_filters=self._filters,
            mel_floor=MEL_FLOOR,
            log_mel="log",
        )
        return log_power_MF.T

    def _pool(self, frames_FD: Floats) -> Floats:
        # Reduced along the rows of (M, F), as every stored embedding was: numpy adds up in another order along columns.
        log_power_MF = frames_FD.T
        statistics: Floats = np.concatenate([log_power_MF.mean(axis=1), log_power_MF.std(axis=1)])
        return statistics

    @functools.cached_property
    def _filters(self) -> Any:
        return mel_filter_bank(
            FFT // 2 + 1, MEL_BANDS, LOWEST_HZ, SAMPLE_RATE / 2, SAMPLE_RATE, norm=None, mel_scale="htk"
        )


class MoonshineEncoder(_ClipEncoder):
    """The encoder of Moonshine tiny, an English speech recogniser: 288 wide, the mean over its frames (41 a second).

    Its weights (MIT licence) come in the pip package moonshine-voice, which is not in requirements.txt; only the file
    is used, none of the package's code. They are quantised to 8 bits with one scale a batch, and its first layers
    normalise over time: clips of one batch would change one another, so each is encoded by itself.
    """

    min_samples = MOONSHINE_MIN_SAMPLES
    poolings = ("auto", "mean", "tokens")

    @property
    def dim(self) -> int:
        return 288  # the model's hidden width

    def _revision(self) -> str:
        return file_digest(self._weights_file())

    def load(self, *, device: str = "cpu", precision: str = "float32") -> None:
        """Open the weights with onnxruntime, on as many threads as torch may use; always on the CPU, in int8."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors only
        self._session = onnxruntime.InferenceSession(
            str(self._weights_file()), options, providers=["CPUExecutionProvider"]
        )

    def _frames(self, clip_S: Floats) -> Floats:
        inputs = {"input_values": clip_S[None], "attention_mask": np.ones((1, len(clip_S)), dtype=np.int64)}
        (hidden_1FD,) = self._session.run(["last_hidden_state"], inputs)
        frames_FD: Floats = hidden_1FD[0]
        return frames_FD

    def _weights_file(self) -> Path:
        if self.config.weights is not None:
            file = Path(fetched(self.config.weights, setting="encoders.audio.weights"))
            file = file / MOONSHINE_FILE if file.is_dir() else file
            if not file.is_file():
                raise InputError(
                    f"encoders.audio.weights is {self.config.weights}; "
                    f"give {MOONSHINE_FILE} of Moonshine tiny, or its folder"
                )
            return file
        # Found, not imported: the package's own code wants a sound card's library.
        spec = importlib.util.find_spec("moonshine_voice")
        folders = [] if spec is None else list(spec.submodule_search_locations or [])
        for folder in folders:
            file = Path(folder) / "assets" / "tiny-en" / MOONSHINE_FILE
            if file.is_file():
                return file
        given = "is not installed" if not folders else "is installed without weights"
        raise InputError(
            f"encoders.audio.name is 'moonshine_tiny', but the package moonshine-voice {given}; "
            f"run pip install {MOONSHINE_PACKAGE}, or set encoders.audio.name=logmel"
        )
