"""Pictures as people bring them: every mode and every oddity of metadata, read or refused in words."""

import numpy as np
import pytest
from media_cells import image_bytes
from PIL import Image

from decoding_mmfusion import decode_image


@pytest.fixture
def picture():
    pixels = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_pictures_come_back_exactly_from_bytes_and_from_a_path(picture, file_format, tmp_path):
    path = tmp_path / "x.any"
    path.write_bytes(image_bytes(picture, file_format))
    for source in (path, str(path), path.read_bytes(), bytearray(path.read_bytes())):
        decoded = decode_image(source)
        assert decoded.mode == "RGB"
        assert np.array_equal(decoded, picture)


@pytest.mark.parametrize("file_format", ["JPEG", "WEBP", "GIF"])
def test_lossy_pictures_keep_their_colour(file_format):
    decoded = np.asarray(decode_image(image_bytes(Image.new("RGB", (16, 16), (200, 40, 90)), file_format)))
    assert np.abs(decoded.astype(int) - (200, 40, 90)).max() < 8


def test_an_rgb_image_is_returned_as_it_is(picture):
    assert decode_image(picture) is picture


def test_16_bit_pictures_are_scaled_not_clipped():
    values = np.array([[0, 257, 40_000, 65_535]], np.uint16)
    expected = [0, 1, 156, 255]
    assert np.asarray(decode_image(image_bytes(Image.fromarray(values))))[0, :, 0].tolist() == expected
    assert np.asarray(decode_image(image_bytes(Image.fromarray(values), "TIFF")))[0, :, 2].tolist() == expected
    assert np.asarray(decode_image(Image.fromarray(values.astype(np.int32))))[0, :, 1].tolist() == expected


def test_float_pictures_read_0_to_1_or_0_to_255_and_other_ranges_are_stretched():
    for values in ([[0, 0.5, 1]], [[0, 128, 255]], [[-7, 0.03, 7]], [[-0.1, 0.0004, 0.1]]):
        image = Image.fromarray(np.array(values, np.float32))
        assert np.asarray(decode_image(image_bytes(image, "TIFF")))[0, :, 0].tolist() == [0, 128, 255]


def test_a_plain_picture_outside_every_known_range_is_black():
    assert not np.asarray(decode_image(Image.fromarray(np.full((2, 2), -7, np.float32)))).any()


def test_float_pictures_with_nan_are_refused():
    with pytest.raises(ValueError, match="NaN or infinite pixels"):
        decode_image(Image.fromarray(np.full((2, 2), np.nan, np.float32)))


def test_cmyk_jpeg_becomes_rgb():
    red = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    pixel = np.asarray(decode_image(image_bytes(red, "JPEG")))[4, 4]
    assert pixel[0] > 200 and pixel[1] < 50 and pixel[2] < 50


def test_ycbcr_and_one_bit_become_rgb(picture):
    difference = np.asarray(decode_image(picture.convert("YCbCr"))).astype(int) - np.asarray(picture)
    assert np.abs(difference).max() <= 4
    dots = Image.fromarray(np.array([[True, False]])).convert("1")
    assert np.asarray(decode_image(image_bytes(dots))).tolist() == [[[255] * 3, [0] * 3]]


def test_exif_orientation_is_applied():
    image = Image.new("RGB", (40, 20), "blue")
    image.paste("white", (0, 0, 40, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show rotated clockwise
    decoded = decode_image(image_bytes(image, "JPEG", exif=exif))
    assert decoded.size == (20, 40)
    assert min(decoded.getpixel((18, 20))) > 200  # the white edge was on top, now right


def test_transparency_lies_on_white():
    for mode, clear in (("RGBA", (255, 0, 0, 0)), ("LA", (0, 0))):
        assert decode_image(image_bytes(Image.new(mode, (2, 2), clear))).getpixel((0, 0)) == (255, 255, 255)
    half = decode_image(image_bytes(Image.new("RGBA", (2, 2), (255, 0, 0, 128)))).getpixel((0, 0))
    assert half == (255, 127, 127)


def test_of_an_animated_palette_gif_the_first_frame_counts():
    frames = [Image.new("P", (6, 6), 1) for _ in range(2)]
    for frame, colour in zip(frames, [(10, 200, 30), (250, 0, 0)], strict=True):
        frame.putpalette([0, 0, 0, *colour])
    data = image_bytes(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode_image(data).getpixel((3, 3)) == (10, 200, 30)
    clear = image_bytes(frames[0], "GIF", transparency=1)
    assert decode_image(clear).getpixel((3, 3)) == (255, 255, 255)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_bomb_is_refused_by_its_header(monkeypatch):
    data = image_bytes(Image.new("1", (12_000, 12_000)))
    assert len(data) < 100_000
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("the bomb was decoded"))
    with pytest.raises(ValueError, match="12000 x 12000 = 144000000 pixels, the limit is 50000000"):
        decode_image(data)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)  # here Pillow itself refuses
    with pytest.raises(ValueError, match="too many pixels"):
        decode_image(data)


def test_max_pixels_is_a_choice(picture):
    with pytest.raises(ValueError, match="30 = 1200 pixels, the limit is 1199"):
        decode_image(picture, max_pixels=1199)
    assert decode_image(picture, max_pixels=1200).size == (40, 30)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM"])
def test_truncated_pictures_are_an_error(picture, file_format, tmp_path):
    path = tmp_path / "cut"
    path.write_bytes(image_bytes(picture, file_format)[:-150])
    with pytest.raises(ValueError, match=r"`.*cut` cannot be (read|decoded)"):
        decode_image(path)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    ],
)
def test_what_is_no_picture_is_refused_whatever_its_name(data, tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"`.*picture.png` cannot be read as a picture .*; allowed are PNG, JPEG"):
        decode_image(path)
