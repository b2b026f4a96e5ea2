"""Sounds as people bring them: containers whose headers are guesses, wrong or missing, and what no decoder reads."""

import functools
import io
import struct
import tracemalloc

import numpy as np
import pytest
import soundfile
import torch
from media_cells import RATE, pitch, sound_bytes, tone

from decoding_mmfusion import decode_audio

SOUND_FORMATS = {
    "WAV": ["PCM_U8", "PCM_16", "PCM_24", "FLOAT"],
    "FLAC": ["PCM_16"],
    "OGG": ["VORBIS"],
    "MP3": ["MPEG_LAYER_III"],
}


@pytest.mark.parametrize(
    ("file_format", "subtype"),
    [(name, kind) for name, kinds in SOUND_FORMATS.items() for kind in kinds],
)
def test_a_440_hz_tone_stays_440_hz_in_every_format(file_format, subtype, tmp_path):
    path = tmp_path / "tone"
    path.write_bytes(sound_bytes(tone(1.0), file_format=file_format, subtype=subtype))
    for source in (path, path.read_bytes()):
        samples = decode_audio(source, sampling_rate=RATE)
        assert samples.dtype == np.float32 and samples.shape == (RATE,)
        assert pitch(samples) == pytest.approx(440, abs=2)
        assert 0.45 < np.abs(samples).max() < 0.6


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000, 192_000])
@pytest.mark.parametrize("num_channels", [1, 2])
def test_a_440_hz_tone_stays_440_hz_at_every_rate_mono_and_stereo(rate, num_channels):
    samples = np.stack([tone(1.0, rate)] * num_channels, axis=1)
    for source in (sound_bytes(samples, rate), {"array": samples, "sampling_rate": rate}):
        decoded = decode_audio(source, sampling_rate=RATE)
        assert abs(len(decoded) - RATE) <= 1
        assert pitch(decoded) == pytest.approx(440, abs=2)
        assert np.abs(decoded).max() <= 1


def test_stereo_is_averaged_whichever_axis_the_channels_are_on():
    stereo = np.stack([tone(), np.zeros_like(tone())], axis=1)
    for array in (stereo, stereo.T):
        decoded = decode_audio({"array": array, "sampling_rate": RATE}, sampling_rate=RATE)
        assert np.allclose(decoded, tone() / 2, atol=1e-6)


@pytest.mark.parametrize("shape", [(9, 1000), (1000, 9), (3, 3), (4, 1000, 2), ()])
def test_impossible_shapes_of_sound_are_refused(shape):
    with pytest.raises(ValueError, match=r"sound of shape \("):
        decode_audio({"array": np.zeros(shape, np.float32), "sampling_rate": RATE}, sampling_rate=RATE)


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.uint8, np.uint16])
def test_integers_are_scaled_by_the_range_of_their_type(dtype):
    limits = np.iinfo(dtype)
    middle = (limits.max + limits.min + 1) // 2
    array = np.resize(np.array([limits.min, middle, limits.max], dtype), 1200)
    decoded = decode_audio({"array": array, "sampling_rate": RATE}, sampling_rate=RATE)
    assert decoded[:3] == pytest.approx([-1, 0, 1], abs=1 / 100)


@pytest.mark.parametrize("array", [np.zeros(900, np.int64), np.zeros(900, bool), np.zeros(900, complex), ["a"] * 900])
def test_samples_without_a_known_full_scale_are_refused(array):
    with pytest.raises(ValueError, match="whose full scale is unknown"):
        decode_audio({"array": array, "sampling_rate": RATE}, sampling_rate=RATE)


def test_floats_above_1_are_divided_by_their_peak_and_integers_in_disguise_refused():
    decoded = decode_audio({"array": tone() * 4, "sampling_rate": RATE}, sampling_rate=RATE)
    assert np.abs(decoded).max() == pytest.approx(1)
    assert np.allclose(decoded, tone() / tone().max(), atol=1e-4)
    for scale in (32_768.0, 1e30, 1e300):
        with pytest.raises(ValueError, match=r"the clip peaks at .*, float samples belong in \[-1, 1\]"):
            decode_audio({"array": tone().astype(np.float64) * scale, "sampling_rate": RATE}, sampling_rate=RATE)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinite_samples_are_refused(value):
    samples = tone()
    samples[5] = value
    for source in (sound_bytes(samples, subtype="FLOAT"), {"array": samples, "sampling_rate": RATE}):
        with pytest.raises(ValueError, match=r"the clip (holds NaN or infinite samples|peaks at)"):
            decode_audio(source, sampling_rate=RATE)


def test_empty_and_10_ms_clips_are_refused_with_their_duration():
    for length, words in ((0, "lasts 0 s"), (160, r"lasts 0.01 s \(160 samples at 16000 Hz\)")):
        for source in (sound_bytes(tone()[:length]), {"array": tone()[:length], "sampling_rate": RATE}):
            with pytest.raises(ValueError, match=f"{words}.* at least 0.025 s are needed"):
                decode_audio(source, sampling_rate=RATE)
    assert len(decode_audio({"array": tone()[:400], "sampling_rate": RATE}, sampling_rate=RATE)) == 400


@pytest.mark.parametrize("rate", [1_000, 8_000, 11_025, 22_050, 44_100, 192_000, 384_000])
def test_25_ms_at_any_rate_are_enough_for_one_frame_of_the_tower(rate):
    array = np.zeros(int(np.ceil(0.025 * rate)), np.float32)
    assert len(decode_audio({"array": array, "sampling_rate": rate}, sampling_rate=RATE)) >= 400


def test_silence_is_a_sound():
    assert not decode_audio({"array": np.zeros(800, np.int16), "sampling_rate": RATE}, sampling_rate=RATE).any()


@pytest.mark.parametrize(
    "rate",
    [
        0, -1, 999, 384_001, 4_000_000_000, 16_000.5, float("nan"), "16000", True, float("inf"), -float("inf"), 1e300,
        10**400, np.float32("inf"), np.float64("nan"), np.array(np.inf), np.array([16_000]), np.True_, np.complex64(1),
        torch.tensor(float("inf")), [16_000],
    ],
    ids=repr,
)  # fmt: skip
def test_impossible_rates_are_refused(rate):
    with pytest.raises(ValueError, match="`sampling_rate` is"):
        decode_audio({"array": tone(), "sampling_rate": rate}, sampling_rate=RATE)


@pytest.mark.parametrize("rate", [np.int64(RATE), np.float32(RATE), np.array(RATE), torch.tensor(RATE), float(RATE)])
def test_a_rate_may_be_a_number_of_any_library(rate):
    assert len(decode_audio({"array": tone(), "sampling_rate": rate}, sampling_rate=RATE)) == len(tone())


def test_a_dict_without_array_or_rate_is_refused_with_its_keys():
    with pytest.raises(ValueError, match='needs the keys "array" and "sampling_rate"; it has: path'):
        decode_audio({"path": "x.wav"}, sampling_rate=RATE)


def test_of_an_hour_of_flac_only_the_first_seconds_are_decoded(tmp_path, monkeypatch):
    path = tmp_path / "hour.flac"
    with soundfile.SoundFile(path, "w", 16_000, 1, "PCM_16") as file:
        for _ in range(60):
            file.write(np.zeros(60 * 16_000, np.int16))
    decoded, read = [], soundfile.SoundFile.read
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda self, out: decoded.append(len(out)) or read(self, out=out))
    samples = decode_audio(path, sampling_rate=8_000, max_seconds=2.0)
    assert samples.shape == (16_000,) and sum(decoded) == 32_000


def test_max_seconds_never_leaves_a_sample_too_many():
    for rate in (8_000, 11_025, 44_100, 48_000):
        for source in (sound_bytes(tone(1, rate), rate), {"array": tone(1, rate), "sampling_rate": rate}):
            assert abs(len(decode_audio(source, sampling_rate=RATE, max_seconds=0.3)) - 4800) <= 1
            assert len(decode_audio(source, sampling_rate=RATE, max_seconds=0.3)) <= 4800


@pytest.mark.parametrize("file_format", ["WAV", "FLAC", "OGG", "MP3", "AIFF"])
def test_truncated_sounds_are_an_error(file_format):
    data = sound_bytes(tone(2.0), file_format=file_format)
    with pytest.raises(ValueError, match=r"is cut off|cannot be read as sound|lasts 0 s"):
        decode_audio(data[: len(data) // 2], sampling_rate=RATE)


def test_a_streamed_wav_that_does_not_know_its_length_is_read():
    data = bytearray(sound_bytes(tone()))
    data[40:44] = b"\xff" * 4
    assert len(decode_audio(bytes(data), sampling_rate=RATE)) == len(tone())


@pytest.mark.parametrize("name", ["x.wav", "x.raw", "x"])
def test_what_is_no_sound_is_refused_whatever_its_name(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(b"garbage" * 200)
    with pytest.raises(ValueError, match=r"cannot be read as sound .*; allowed are WAV, FLAC, OGG, MP3 and AIFF"):
        decode_audio(path, sampling_rate=RATE)


def test_sixteen_channels_in_a_file_are_refused():
    with pytest.raises(ValueError, match="has 16 channels, at most 8"):
        decode_audio(sound_bytes(np.zeros((800, 16), np.float32)), sampling_rate=RATE)


# --- containers whose header is a guess, unknown or wrong: the samples are right

SECONDS = 2.0
MPEG_1, MPEG_2 = 44_100, 16_000


def clip(rate=RATE, channels=1):
    """Half of it quiet and half of it loud, so that a guess from its first bytes is far off."""
    rng = np.random.default_rng(0)
    half = round(rate * SECONDS / 2)
    samples = np.concatenate([0.001 * rng.normal(size=half), 0.3 * rng.normal(size=half)]).clip(-1, 1)
    return samples if channels == 1 else np.stack([samples, 0.5 * samples], axis=1)


@functools.cache
def sound(file_format, subtype=None, rate=RATE, channels=1, **options):
    buffer = io.BytesIO()
    soundfile.write(buffer, clip(rate, channels), rate, format=file_format, subtype=subtype, **options)
    return buffer.getvalue()


def mp3(rate=MPEG_1, mode="VARIABLE", channels=1):
    return sound("MP3", rate=rate, channels=channels, bitrate_mode=mode, compression_level=0.5)


def put(data, mark, offset, number, order):
    """The bytes with one number, `offset` behind a mark, replaced."""
    place = data.index(mark) + offset
    content = struct.pack(order, number)
    return data[:place] + content + data[place + len(content) :]


def more(data, mark, offset, by, order):
    (number,) = struct.unpack_from(order, data, data.index(mark) + offset)
    return put(data, mark, offset, number + by, order)


def chunk(name, content):
    return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


def id3(size=2000):
    return b"ID3\3\0\0" + bytes(size >> shift & 127 for shift in (21, 14, 7, 0)) + bytes(range(1, 201)) * (size // 200)


def without_xing(data):
    """Without the frame in front, which holds nothing but the header."""
    mpeg_1 = data[1] >> 3 & 3 == 3
    place = next(at for at in range(200, 2000) if data[at : at + 2] == data[:2])
    assert (b"Xing" in data[:place] or b"Info" in data[:place]) and place > (150 if mpeg_1 else 70)
    return data[place:]


def flac_of(total):
    data = sound("FLAC")
    packed = int.from_bytes(data[18:26], "big") >> 36 << 36 | total
    return data[:18] + packed.to_bytes(8, "big") + data[26:]


def xing(data, frames=None, num_bytes=None):
    mark = b"Xing" if b"Xing" in data else b"Info"
    data = data if frames is None else put(data, mark, 8, frames, ">I")
    return data if num_bytes is None else put(data, mark, 12, num_bytes, ">I")


def wav(subtype="PCM_16"):
    return sound("WAV", subtype)


ODD_SOUNDS = {
    **{
        f"WAV, data {by:+}": lambda by=by: more(wav(), b"data", 4, by, "<I")
        for by in (-44, -3, -1, 1, 2, 3, 8, 36, 44)
    },
    **{
        f"WAV, data {size:#x}": lambda size=size: put(wav(), b"data", 4, size, "<I")
        for size in (0, 0x7FFFF000, 0x7FFFFFFF, 0xFFFFF000, 0xFFFFFFFF)
    },
    "WAV, all sizes 0": lambda: put(put(wav(), b"data", 4, 0, "<I"), b"RIFF", 4, 0, "<I"),
    "RIFX, data 0": lambda: put(sound("WAV", endian="BIG"), b"data", 4, 0, ">I"),
    "WAV with LIST behind": lambda: wav() + chunk(b"LIST", b"INFOISFT\0\0\0\0"),
    "WAV with ID3 behind": lambda: wav() + chunk(b"id3 ", id3(200)),
    "WAV with zeros behind": lambda: wav() + bytes(4000),
    "WAV with garbage behind": lambda: wav() + b"\x7f\1\2" * 333,
    "WAV behind ID3": lambda: id3() + wav(),
    **{
        f"WAV {subtype}, data +44": lambda subtype=subtype: more(wav(subtype), b"data", 4, 44, "<I")
        for subtype in ("PCM_U8", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ALAW", "ULAW")
    },
    "WAV IMA ADPCM": lambda: wav("IMA_ADPCM"),
    "WAV MS ADPCM, data 0xffffffff": lambda: put(wav("MS_ADPCM"), b"data", 4, 0xFFFFFFFF, "<I"),
    "WAV extensible": lambda: sound("WAVEX"),
    "RF64": lambda: sound("RF64"),
    "RF64, data +44": lambda: more(sound("RF64"), b"ds64", 16, 44, "<Q"),
    "RF64, data 0": lambda: put(sound("RF64"), b"ds64", 16, 0, "<Q"),
    "BW64": lambda: b"BW64" + sound("RF64")[4:],
    "W64": lambda: sound("W64"),
    "AIFF, SSND +8": lambda: more(sound("AIFF"), b"SSND", 4, 8, ">I"),
    "AIFF, SSND -8": lambda: more(sound("AIFF"), b"SSND", 4, -8, ">I"),
    "AIFF, SSND 0": lambda: put(sound("AIFF"), b"SSND", 4, 0, ">I"),
    "AIFF, no frames": lambda: put(sound("AIFF"), b"COMM", 10, 0, ">I"),
    "AIFC float": lambda: sound("AIFF", "FLOAT"),
    "CAF": lambda: sound("CAF"),
    "CAF, data -1": lambda: put(sound("CAF"), b"data", 4, -1, ">q"),
    "AU, data -1": lambda: put(sound("AU"), b".snd", 8, 0xFFFFFFFF, ">I"),
    "AU, data 0": lambda: put(sound("AU"), b".snd", 8, 0, ">I"),
    "FLAC through a pipe": lambda: flac_of(0),
    "FLAC that claims half": lambda: flac_of(RATE),
    "FLAC that claims ten times as much": lambda: flac_of(20 * RATE),
    "FLAC behind ID3": lambda: id3() + sound("FLAC"),
    "FLAC with ID3v1 behind": lambda: sound("FLAC") + b"TAG" + bytes(125),
    "FLAC with zeros behind": lambda: sound("FLAC") + bytes(5000),
    "OGG behind ID3": lambda: id3() + sound("OGG"),
    "OGG with garbage behind": lambda: sound("OGG") + b"\x55" * 5000,
    "OGG Opus": lambda: sound("OGG", "OPUS"),
    **{f"MP3 at {rate} Hz": lambda rate=rate: mp3(rate) for rate in (8000, 11_025, 12_000, 22_050, 32_000, 48_000)},
    "MP3 joint stereo": lambda: mp3(channels=2),
    **{
        f"MP3 {mode} at {rate} Hz without Xing": lambda rate=rate, mode=mode: without_xing(mp3(rate, mode))
        for rate in (MPEG_1, MPEG_2)
        for mode in ("VARIABLE", "CONSTANT", "AVERAGE")
    },
    "MP3 stereo without Xing": lambda: without_xing(mp3(channels=2)),
    "MP3, Xing of 10 frames": lambda: xing(mp3(), 10),
    "MP3, Xing of 0 frames": lambda: xing(mp3(), 0),
    "MP3, Xing of 9999 frames": lambda: xing(mp3(), 9999),
    "MP3, Xing of half": lambda: xing(mp3(), 38, len(mp3()) // 2),
    "MP3, Info of 10 frames": lambda: xing(mp3(mode="CONSTANT"), 10),
    "MP3 behind a picture in ID3": lambda: id3(200_000) + mp3(),
    "MP3 without Xing behind a picture in ID3": lambda: id3(200_000) + without_xing(mp3()),
    "MP3 behind two ID3": lambda: id3() + id3(400) + without_xing(mp3()),
    "MP3 with ID3v1 behind": lambda: mp3() + b"TAG" + bytes(125),
    "MP3 with APE behind": lambda: without_xing(mp3()) + b"APETAGEX\xd0\7\0\0 \0\0\0" + bytes(2000),
    "MP3 with garbage behind": lambda: without_xing(mp3()) + b"\x55\xaa" * 5000,
    "MP3 with zeros behind": lambda: without_xing(mp3()) + bytes(20_000),
    "MP3 in a WAV": lambda: (
        b"RIFF\0\0\0\0WAVE"
        + chunk(b"fmt ", struct.pack("<HHIIHHHHIHHH", 0x55, 1, MPEG_1, 8000, 1, 0, 12, 1, 2, 1152, 1, 0))
        + chunk(b"data", without_xing(mp3()))
    ),
    "MP3 behind zeros": lambda: bytes(3000) + mp3(),
    "MP3 from the middle of a frame": lambda: mp3()[100:],
    "MP3 in two pieces with garbage between": lambda: (
        without_xing(mp3())[:9000] + bytes(2500) + without_xing(mp3())[9000:]
    ),
}


@pytest.mark.parametrize("name", ODD_SOUNDS)
def test_all_of_a_sound_is_heard_whatever_its_header_says(name, tmp_path):
    data = ODD_SOUNDS[name]()
    (path := tmp_path / "sound").write_bytes(data)
    for source in (data, path):
        assert len(decode_audio(source, sampling_rate=RATE)) == pytest.approx(SECONDS * RATE, rel=0.01, abs=0.1 * RATE)
    heard = decode_audio(data, sampling_rate=RATE, max_seconds=1.5)
    assert len(heard) == 1.5 * RATE
    assert np.abs(heard[: RATE // 2]).mean() < 0.05 < np.abs(heard[-RATE // 4 :]).mean()


@pytest.mark.parametrize("name", ["VORBIS", "OPUS"])
def test_chained_streams_are_heard_one_after_the_other(name):
    data = sound("OGG", name)
    assert len(decode_audio(data + data, sampling_rate=RATE)) == 2 * SECONDS * RATE
    assert len(decode_audio(data + data, sampling_rate=RATE, max_seconds=3)) == 3 * RATE
    other = sound("OGG", "VORBIS", rate=44_100, channels=2)
    assert len(decode_audio(data + other, sampling_rate=RATE)) == pytest.approx(2 * SECONDS * RATE, abs=2)


@pytest.mark.parametrize("mode", ["VARIABLE", "CONSTANT"])
def test_two_mp3_files_in_one_are_heard_one_after_the_other(mode):
    heard = decode_audio(mp3(mode=mode) * 2, sampling_rate=RATE)
    assert len(heard) == pytest.approx(2 * SECONDS * RATE, rel=0.02)
    assert np.abs(heard[-RATE // 4 :]).mean() > 0.05


@pytest.mark.parametrize("name", ["WAV", "AIFF", "FLAC", "MP3"])
def test_a_few_percent_that_are_missing_at_the_end_cost_only_these(name):
    data = sound_bytes(np.tile(tone(1.0), 8), file_format=name)
    kept = round(0.98 * len(data))
    assert 7.2 * RATE < len(decode_audio(data[:kept], sampling_rate=RATE)) < 8 * RATE
    with pytest.raises(ValueError, match="is cut off"):
        decode_audio(data[: round(0.7 * len(data))], sampling_rate=RATE)


def test_an_empty_wav_with_a_chunk_behind_has_no_sound():
    data = sound_bytes(tone()[:0]) + chunk(b"LIST", b"INFOISFT" + bytes(3000))
    with pytest.raises(ValueError, match="lasts 0 s"):
        decode_audio(data, sampling_rate=RATE)


def test_headers_that_claim_hours_fill_no_memory():
    claims = [flac_of(2**36 - 1), put(sound("RF64"), b"ds64", 16, 2**50, "<Q"), xing(mp3(), 2**31 - 1)]
    tracemalloc.start()
    for data in claims:
        for limit in (10.0, None):
            try:
                decode_audio(data, sampling_rate=RATE, max_seconds=limit)
            except ValueError as error:
                assert "cut off" in str(error)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * 2**20


OTHER_SOUNDS = {
    "M4A": b"\0\0\0 ftypM4A \0\0\0\0M4A mp42isom",
    "WebM": b"\x1aE\xdf\xa3\x9fB\x86\x81\1webm",
    "WMA": bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c"),
    "AMR": b"#!AMR\n<\x1f",
    "AAC": b"\xff\xf1P\x80.\x7f\xfc",
    "Speex": b"OggS\0\2" + bytes(20) + b"\1PSpeex   1.2",
    "Monkey's Audio": b"MAC \x96\x0f\0\0",
    "WavPack": b"wvpk\x32\0\0\0",
    "AVI": b"RIFF\0\0\1\0AVI LIST",
}


@pytest.mark.parametrize("name", OTHER_SOUNDS)
def test_what_is_not_read_is_called_by_its_name_with_a_line_that_converts_it(name, tmp_path):
    path = tmp_path / "my clip.bin"
    path.write_bytes(OTHER_SOUNDS[name] + bytes(5000))
    with pytest.raises(ValueError, match=r"ffmpeg -i 'my clip.bin' 'my clip.wav'") as told:
        decode_audio(path, sampling_rate=RATE)
    assert name in str(told.value) or name == "Speex"
    assert "damaged" not in str(told.value)
