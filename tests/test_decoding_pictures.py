"""Pictures as people bring them: every mode and every oddity of metadata, read or refused in words."""

import struct
import warnings
import zlib

import numpy as np
import pytest
from media_cells import image_bytes
from PIL import Image, ImageCms, TiffImagePlugin

from decoding_mmfusion import decode_image
from training.image_bits import estimate_bits


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
    with pytest.raises(ValueError, match=r"`.*picture.png` cannot be read as a picture.*; allowed are PNG, JPEG"):
        decode_image(path)


# --- bits in a container of 16


GREYS_OF_16_BITS = {
    "PNG": lambda values: image_bytes(Image.fromarray(values)),
    "TIFF": lambda values: image_bytes(Image.fromarray(values), "TIFF"),
    "TIFF, LZW": lambda values: image_bytes(Image.fromarray(values), "TIFF", compression="tiff_lzw"),
    "TIFF, big-endian": lambda values: image_bytes(
        Image.frombytes("I;16B", values.shape[::-1], values.astype(">u2").tobytes()), "TIFF"
    ),
    "TIFF of 32-bit integers": lambda values: image_bytes(Image.fromarray(values.astype(np.int32)), "TIFF"),
    "I;16": lambda values: Image.fromarray(values),
    "I;16B": lambda values: Image.frombytes("I;16B", values.shape[::-1], values.astype(">u2").tobytes()),
    "I": lambda values: Image.fromarray(values.astype(np.int32)),
}


@pytest.mark.parametrize("kind", GREYS_OF_16_BITS)
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_the_bits_that_are_used_are_scaled_to_all_grey_levels(kind, bits):
    values = np.linspace(0, 2**bits - 1, 1024).round().astype(np.uint16).reshape(32, 32)
    source = GREYS_OF_16_BITS[kind](values)
    expected = np.rint(values * (255 / (2**bits - 1)))
    for given in (bits, None):
        assert np.array_equal(np.asarray(decode_image(source, bits=given))[..., 0], expected)
    as_before = np.rint(values * (255 / 65535))
    assert np.array_equal(np.asarray(decode_image(source, bits=16))[..., 0], as_before)


def test_what_is_brighter_than_white_is_white():
    source = Image.fromarray(np.array([[0, 512, 1023, 1024, 65535]], np.uint16))
    assert np.asarray(decode_image(source, bits=10))[0, :, 0].tolist() == [0, 128, 255, 255, 255]


def test_bits_change_no_picture_of_8_bits(picture):
    assert decode_image(picture, bits=10) is picture
    assert np.array_equal(decode_image(picture.convert("L"), bits=10), decode_image(picture.convert("L")))


# --- every mode, and metadata that is broken


def flag(mode="RGB"):
    """Blue with a white edge on top, 40 x 20."""
    image = Image.new("RGB", (40, 20), "blue")
    image.paste("white", (0, 0, 40, 8))
    return image.convert(mode)


def lab():
    return ImageCms.profileToProfile(
        flag(), ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )


def orientation(kind, count, value, order="<"):
    """An EXIF block with nothing but an orientation of some type."""
    head = b"II*\0" if order == "<" else b"MM\0*"
    entry = struct.pack(order + "HHHI", 1, 0x112, kind, count) + value + bytes(4)
    return b"Exif\0\0" + head + struct.pack(order + "I", 8) + entry


def png_chunk(name, content, checksum=None):
    checksum = zlib.crc32(name + content) if checksum is None else checksum
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)


def png_with(*chunks, mode="RGB", before=b"IDAT", **options):
    data = image_bytes(flag() if mode == "RGB" else flag().quantize(4) if mode == "P" else flag(mode), **options)
    place = data.index(before) - 4
    return data[:place] + b"".join(chunks) + data[place:]


def tiff_of_text():
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[274], tags.tagtype[274] = "6", 2
    return image_bytes(flag(), "TIFF", tiffinfo=tags)


def deep_png(values):
    """RGB or RGBA of 16 bits a colour, (H, W, C) uint16; Pillow reads but does not write such."""
    height, width, channels = values.shape
    head = struct.pack(">IIBBBBB", width, height, 16, {3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = png_chunk(b"IHDR", head), png_chunk(b"IDAT", zlib.compress(rows)), png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def deep_tiff(values, order):
    height, width, _ = values.shape
    names = {256: width, 257: height, 258: 122, 259: 1, 262: 2, 273: 128, 277: 3, 278: height, 279: values.size * 2}
    entries = [struct.pack(order + "HHIHxx", tag, 3, 3 if tag == 258 else 1, value) if tag != 258 else
               struct.pack(order + "HHII", tag, 3, 3, value) for tag, value in names.items()]  # fmt: skip
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, len(names))
    content = head + b"".join(entries) + bytes(4) + struct.pack(order + "HHH", 16, 16, 16)
    return content + values.astype(order + "u2").tobytes()


@pytest.mark.parametrize("kind", ["PNG", "PNG, opaque", "TIFF", "TIFF, big-endian"])
@pytest.mark.parametrize("bits", [10, 12, 16])
def test_the_bits_of_colours_are_scaled_too(kind, bits):
    values = np.random.default_rng(0).integers(0, 2**bits, (9, 10, 3)).astype(np.uint16)
    values[0, 0] = 2**bits - 1
    opaque = np.dstack([values, np.full((9, 10), 65535, np.uint16)])
    make = {
        "PNG": lambda: deep_png(values), "PNG, opaque": lambda: deep_png(opaque),
        "TIFF": lambda: deep_tiff(values, "<"), "TIFF, big-endian": lambda: deep_tiff(values, ">"),
    }  # fmt: skip
    data = make[kind]()
    upper_bytes = values >> 8  # what Pillow reads, and models of before have seen
    expected = upper_bytes if bits == 16 else np.rint(values * (255 / (2**bits - 1)))
    for given in (bits, None):
        assert np.array_equal(decode_image(data, bits=given), expected)
    assert np.array_equal(decode_image(data, bits=16), upper_bytes)
    assert estimate_bits([data]) == bits


def tiff(image, order, number=1):
    """An RGB picture in either order of bytes, with an orientation; Pillow writes one of the orders."""
    names = {256: image.width, 257: image.height, 258: 0, 259: 1, 262: 2, 273: 0, 274: number, 277: 3, 279: 0}
    names[258] = 8 + 2 + 12 * len(names) + 4  # where the bits of the three colours stand
    names[273], names[279] = names[258] + 6, len(image.tobytes())
    entries = [struct.pack(order + "HHI", tag, 4 if tag in (273, 279) else 3, 3 if tag == 258 else 1)
               + struct.pack(order + "I" if tag in (258, 273, 279) else order + "Hxx", value)
               for tag, value in names.items()]  # fmt: skip
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, len(names))
    return head + b"".join(entries) + bytes(4) + struct.pack(order + "HHH", 8, 8, 8) + image.tobytes()


BOMB = zlib.compress(bytes(5_000_000))
ODD_EXIF = {
    "0": orientation(3, 1, b"\0\0\0\0"),
    "9": orientation(3, 1, b"\x09\0\0\0"),
    "text": orientation(2, 2, b"6\0\0\0"),
    "a float": orientation(11, 1, struct.pack("<f", 6)),
    "a fraction that lies outside": orientation(5, 1, struct.pack("<I", 99_999)),
    "a type that is unknown": orientation(99, 1, b"\6\0\0\0"),
    "four thousand million": orientation(3, 0xFFFFFFFF, b"\6\0\0\0"),
    "undefined": orientation(7, 4, b"\6\0\0\0"),
    "garbage": b"Exif\0\0garbage!!",
    "nothing": b"Exif\0\0",
    "far away": b"Exif\0\0II*\0\xff\xff\xff\x7f",
}
SEVERAL = {"save_all": True, "append_images": [Image.new("RGB", (40, 20), "red")]}
FLAGS = {
    **{
        f"{kind} with an orientation of {name}": lambda kind=kind, exif=exif: image_bytes(flag(), kind, exif=exif)
        for kind in ("JPEG", "PNG", "WEBP")
        for name, exif in ODD_EXIF.items()
    },
    **{
        f"TIFF with an orientation of {number}": lambda number=number: image_bytes(
            flag(), "TIFF", tiffinfo={274: number}
        )
        for number in (0, 1, 9)
    },
    "TIFF with an orientation of text": tiff_of_text,
    **{
        f"{kind} with a colour profile of garbage": lambda kind=kind: image_bytes(
            flag(), kind, icc_profile=b"garbage" * 9
        )
        for kind in ("JPEG", "PNG", "WEBP", "TIFF")
    },
    "PNG with a profile that does not unpack": lambda: png_with(png_chunk(b"iCCP", b"x\0\0garbage")),
    "PNG with a profile that is a bomb": lambda: png_with(png_chunk(b"iCCP", b"x\0\0" + BOMB)),
    "PNG with text that is a bomb": lambda: png_with(png_chunk(b"zTXt", b"a\0\0" + BOMB)),
    "PNG with text of another checksum": lambda: png_with(png_chunk(b"tEXt", b"a\0b", checksum=0)),
    "PNG with such text behind": lambda: png_with(png_chunk(b"tEXt", b"a\0b", checksum=0), before=b"IEND"),
    **{
        f"PNG with a short {name}": lambda name=name: png_with(png_chunk(name.encode(), b"\0"))
        for name in ("gAMA", "pHYs", "cHRM", "sRGB", "acTL", "iTXt", "tRNS", "eXIf")
    },
    "PNG with garbage behind": lambda: image_bytes(flag()) + b"garbage" * 99,
    "JPEG with garbage behind": lambda: image_bytes(flag(), "JPEG") + b"garbage" * 99,
    "JPEG, progressive": lambda: image_bytes(flag(), "JPEG", progressive=True),
    "JPEG of CMYK": lambda: image_bytes(flag("CMYK"), "JPEG"),
    "TIFF of CMYK": lambda: image_bytes(flag("CMYK"), "TIFF"),
    "TIFF of LAB": lambda: image_bytes(lab(), "TIFF"),
    "TIFF, big-endian": lambda: tiff(flag(), ">"),
    "BigTIFF": lambda: image_bytes(flag(), "TIFF", big_tiff=True),
    "TIFF, JPEG inside": lambda: image_bytes(flag(), "TIFF", compression="jpeg"),
    **{f"{kind} of several": lambda kind=kind: image_bytes(flag(), kind, **SEVERAL)
       for kind in ("TIFF", "PNG", "GIF", "WEBP", "MPO")},
    "palette": lambda: png_with(mode="P"),
    "palette with more opacities than colours": lambda: png_with(png_chunk(b"tRNS", b"\xff" * 200), mode="P"),
    "palette with more opacities than 256": lambda: png_with(png_chunk(b"tRNS", bytes(300)), mode="P"),
    **{
        f"an image in {mode}": lambda mode=mode: flag(mode)
        for mode in ("RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "P")
    },
    "an image in RGBa": lambda: flag("RGBA").convert("RGBa"),
    "an image in PA": lambda: flag().quantize(4).convert("PA"),
    "an image in LAB": lab,
}  # fmt: skip


@pytest.mark.parametrize("name", FLAGS)
def test_a_picture_is_seen_whatever_its_mode_and_its_metadata(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about the metadata
        decoded = np.asarray(decode_image(FLAGS[name]())).astype(int)
    assert decoded.shape == (20, 40, 3)
    tolerance = 40 if "LAB" in name else 12
    assert np.abs(decoded[3, 5:35] - 255).max() <= tolerance and np.abs(decoded[15, 5:35, 2] - 255).max() <= tolerance
    assert decoded[15, 5:35, :2].max() <= 2 * tolerance


@pytest.mark.parametrize("mode", ["1", "L", "LA", "La", "I", "F", "I;16"])
def test_grey_pictures_of_every_mode_are_seen(mode):
    grey = Image.new("L", (40, 20))
    grey.paste(255, (0, 0, 40, 8))
    image = grey.convert("LA").convert("La") if mode == "La" else grey.convert(mode)
    decoded = np.asarray(decode_image(image))
    assert decoded[3].min() == 255 and decoded[15].max() == 0


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("number", range(2, 9))
@pytest.mark.parametrize("order", ["<", ">"])
def test_every_orientation_is_applied_in_every_format(kind, number, order):
    image = Image.new("RGB", (32, 16), "blue")
    image.paste("white", (0, 0, 8, 8))  # the upper left corner
    if kind == "TIFF":
        data = tiff(image, order, number)
    else:
        value = struct.pack(order + "HH", number, 0)
        data = image_bytes(image, kind, exif=orientation(3, 1, value, order), quality=95)
    decoded = decode_image(data)
    assert decoded.size == ((32, 16) if number < 5 else (16, 32))
    right, bottom = number in (2, 3, 6, 7), number in (3, 4, 7, 8)
    corner = (decoded.width - 3 if right else 2, decoded.height - 3 if bottom else 2)
    assert min(decoded.getpixel(corner)) > 200
    opposite = (decoded.width - 1 - corner[0], decoded.height - 1 - corner[1])
    assert max(decoded.getpixel(opposite)[:2]) < 60


@pytest.mark.parametrize("clear", [0, bytes([0, 255, 255, 255])], ids=["one colour", "an opacity each"])
def test_a_palette_with_transparency_lies_on_white(clear):
    image = Image.new("P", (8, 8), 1)
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.paste(0, (0, 0, 4, 8))
    decoded = decode_image(image_bytes(image, transparency=clear))
    assert decoded.getpixel((1, 1)) == (255, 255, 255) and decoded.getpixel((6, 6)) == (0, 255, 0)


@pytest.mark.parametrize(("mode", "clear", "colour"), [
    ("RGB", struct.pack(">HHH", 0, 0, 255), (0, 0, 255)), ("L", struct.pack(">H", 29), (29, 29, 29)),
])  # fmt: skip
def test_a_colour_that_is_transparent_lies_on_white(mode, clear, colour):
    assert decode_image(png_with(mode=mode)).getpixel((5, 15)) == colour
    assert decode_image(png_with(png_chunk(b"tRNS", clear), mode=mode)).getpixel((5, 15)) == (255, 255, 255)


OTHER_PICTURES = {
    "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    "AVIF": b"\0\0\0\x1cftypavif\0\0\0\0avifmif1",
    "JPEG 2000": b"\0\0\0\x0cjP  \r\n\x87\n",
    "JPEG XL": b"\0\0\0\x0cJXL \r\n\x87\n",
    "DICOM": bytes(128) + b"DICM",
    "Photoshop": b"8BPS\0\1",
    "PDF": b"%PDF-1.7\n",
    "SVG": b"<?xml version='1.0'?>\n<svg xmlns='http://www.w3.org/2000/svg'/>",
}


@pytest.mark.parametrize("name", OTHER_PICTURES)
def test_what_is_not_on_the_list_is_called_by_its_name_with_a_line_that_converts_it(name, tmp_path):
    path = tmp_path / "my photo.x"
    path.write_bytes(OTHER_PICTURES[name] + bytes(500))
    with pytest.raises(ValueError, match=r"magick 'my photo\.x' 'my photo\.png'") as told:
        decode_image(path)
    assert name in str(told.value) and "damaged" not in str(told.value)


def test_pixels_that_are_no_picture_are_refused_in_words():
    for values in ([[0, np.nan]], [[0, np.inf]]):
        data = image_bytes(Image.fromarray(np.array(values, np.float32)), "TIFF")
        with pytest.raises(ValueError, match="NaN or infinite pixels"):
            decode_image(data)
    data = image_bytes(flag().quantize(4))
    place = data.index(b"PLTE") - 4
    size = int.from_bytes(data[place : place + 4], "big") + 12
    with pytest.raises(ValueError, match="cannot be"):
        decode_image(data[:place] + data[place + size :])  # without its palette
