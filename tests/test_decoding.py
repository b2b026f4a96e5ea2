"""What the openers of pictures and sounds have in common: places, damage, packages that are missing."""

import itertools

import numpy as np
import pytest
from media_cells import RATE, image_bytes, sound_bytes, tone
from PIL import Image

import decoding_mmfusion
from decoding_mmfusion import decode_audio, decode_image


@pytest.fixture
def picture():
    pixels = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("url", ["http://x/a", "https://x/a", "hf://x/a", "s3://x/a", " file:///etc/passwd"])
def test_urls_are_refused(url):
    for decode in (decode_image, lambda source: decode_audio(source, sampling_rate=RATE)):
        with pytest.raises(ValueError, match="is a URL, and nothing is ever fetched; download it"):
            decode(url)


def test_missing_files_folders_and_odd_sources_get_a_sentence(tmp_path):
    for decode in (decode_image, lambda source: decode_audio(source, sampling_rate=RATE)):
        with pytest.raises(FileNotFoundError, match=r"`.*nowhere` does not exist; check the path"):
            decode(tmp_path / "nowhere")
        with pytest.raises(FileNotFoundError, match="is not a regular file"):
            decode(tmp_path)
        with pytest.raises(ValueError, match="no usable path"):
            decode("x" * 5000)
        for odd in (7, None, 1.5):
            with pytest.raises(ValueError, match=f"of type {type(odd).__name__}; allowed is a path, bytes or"):
                decode(odd)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_files_raise_nothing_but_a_sentence(picture, capfd):
    rng = np.random.default_rng(0)
    seeds = [(decode_image, image_bytes(picture, name)) for name in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP")]
    sound = lambda data: decode_audio(data, sampling_rate=RATE, max_seconds=1.0)  # noqa: E731
    seeds += [(sound, sound_bytes(tone(), file_format=name)) for name in ("WAV", "FLAC", "OGG", "AIFF")]
    for (decode, data), _ in itertools.product(seeds, range(40)):
        damaged = bytearray(data)
        for position in rng.integers(0, min(len(data), 80), 3):
            damaged[position] = rng.integers(0, 256)
        try:
            decode(bytes(damaged))
        except ValueError as error:
            assert "\n" not in str(error) and "0x" not in str(error)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("package", ["Image", "soundfile", "soxr"])
def test_a_missing_package_is_named_with_its_pip_line(package, monkeypatch):
    monkeypatch.setattr(decoding_mmfusion, package, None)
    with pytest.raises(ImportError, match=r"pip install (pillow|soundfile|soxr)"):
        if package == "Image":
            decode_image(b"")
        decode_audio(sound_bytes(tone(rate=8000), 8000), sampling_rate=RATE)
