"""What a stranger may give, and the code of every refusal; in this process, with a real processor."""

import base64
import io
import json
import re
import textwrap
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
import soundfile
from conftest import model_config
from PIL import Image
from test_pipeline import make_processor

from space.errors import CODES, BadInput
from space.inputs import MODALITIES, read_sample, sample_of_json
from space.options import Options, parse_options

OPTIONS = Options(max_text_chars=20, max_audio_seconds=1.0, max_body_mib=1.0)


def picture(width=20, height=10, kind="PNG"):
    file = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(file, kind)
    return file.getvalue()


def sound(seconds=0.5, kind="WAV", rate=16_000):
    file = io.BytesIO()
    soundfile.write(file, np.linspace(-0.5, 0.5, round(seconds * rate)), rate, format=kind)
    return file.getvalue()


@pytest.fixture(scope="module")
def processor():
    return make_processor(model_config())


def test_bytes_and_our_own_paths_are_opened(processor, tmp_path):
    (tmp_path / "x.png").write_bytes(picture())
    for image in (picture(), tmp_path / "x.png"):
        sample = read_sample({"text": "cat", "image": image, "audio": sound()}, processor, OPTIONS)
        assert sample["text"] == "cat" and sample["image"].size == (20, 10)
        assert sample["audio"]["sampling_rate"] == 16_000
        assert len(sample["audio"]["array"]) == 1600, "only what the model hears is decoded"


def test_a_sound_whose_header_does_not_know_its_length_is_not_too_long(processor):
    streamed = bytearray(sound(kind="FLAC"))
    streamed[21:26] = bytes([streamed[21] & 0xF0, 0, 0, 0, 0])  # how many samples there are: unknown
    assert read_sample({"audio": bytes(streamed)}, processor, OPTIONS)["audio"]["sampling_rate"] == 16_000
    streamed = bytearray(sound(3.0, kind="FLAC"))
    streamed[21:26] = bytes([streamed[21] & 0xF0, 0, 0, 0, 0])
    with pytest.raises(BadInput) as told:
        read_sample({"audio": bytes(streamed)}, processor, OPTIONS)
    assert told.value.code == "audio_too_long"


@pytest.mark.parametrize("empty", [None, "", " \n", float("nan"), "\u00a0"], ids=repr)
def test_empty_values_are_absent_whatever_they_stand_for(processor, empty):
    assert read_sample({"text": empty, "image": picture(), "audio": empty}, processor, OPTIONS).keys() == {"image"}
    assert read_sample({"text": "cat", "image": empty}, processor, OPTIONS).keys() == {"text"}


NAN_WAV = io.BytesIO()
soundfile.write(NAN_WAV, np.full(800, np.nan), 16_000, format="WAV", subtype="FLOAT")
BAD = {
    "nothing": ({}, "nothing_given", "give at least one of text, image, audio"),
    "blank": ({"text": "  ", "image": None}, "nothing_given", "nothing to answer"),
    "unknown": ({"picture": b"x"}, "unknown_field", "'picture' is not known"),
    "number": ({"text": 3}, "wrong_type", "`text` must be a string, got int"),
    "dict": ({"text": {"a": 1}}, "wrong_type", "got dict"),
    "long": ({"text": "x" * 21}, "text_too_long", "21 characters, the limit is 20"),
    "url": ({"image": "http://127.0.0.1/x.png"}, "not_a_file", "paths and URLs are never opened"),
    "path": ({"audio": "/etc/passwd"}, "not_a_file", "`audio` must be a file, got the text '/etc/passwd'"),
    "list": ({"image": [1]}, "wrong_type", "`image` must be a file, got list"),
    "large": ({"image": bytes(2**20 + 1)}, "body_too_large", "1,048,577 bytes, the limit is 1,048,576"),
    "empty": ({"image": b""}, "image_unreadable", "the 0 bytes"),
    "text as picture": ({"image": b"hello"}, "image_unreadable", "allowed are PNG, JPEG"),
    "svg": ({"image": b"<svg xmlns='http://www.w3.org/2000/svg'/>"}, "image_unreadable", "cannot be read"),
    "pixels": ({"image": picture(12_000, 12_000)}, "image_unreadable", "the limit is 50000000"),
    "cut picture": ({"image": picture(300, 300)[:-200]}, "image_unreadable", "cut off"),
    "text as sound": ({"audio": b"hello"}, "audio_unreadable", "allowed are WAV, FLAC"),
    "no frames": ({"audio": sound(0)}, "audio_unreadable", "at least 0.025 s"),
    "nan": ({"audio": NAN_WAV.getvalue()}, "audio_unreadable", "NaN"),
    "hour": ({"audio": sound(3600, "FLAC", 4000)}, "audio_too_long", "lasts 3,600 s, the limit is 1 s"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_has_a_code_and_a_sentence(processor, name):
    given, code, words = BAD[name]
    options = Options(**{**vars(OPTIONS), "max_body_mib": 32.0}) if name == "hour" else OPTIONS
    with pytest.raises(BadInput, match=re.escape(words)) as caught:
        read_sample(given, processor, options)
    assert caught.value.code == code and caught.value.status == CODES[code][0]
    assert caught.value.message.isascii() and len(caught.value.message) < 400
    assert re.search(r"[^.?!][.?!]$", caught.value.message), "one mark at the end"


def test_of_several_bad_values_the_first_is_told_in_the_order_of_the_modalities(processor):
    for given, code in (
        ({"audio": b"x", "image": b"x", "text": "x" * 21}, "text_too_long"),
        ({"audio": b"x", "image": b"x", "text": "cat"}, "image_unreadable"),
        ({"audio": b"x", "image": picture(), "text": "cat"}, "audio_unreadable"),
    ):
        with pytest.raises(BadInput) as caught:
            read_sample(given, processor, OPTIONS)
        assert caught.value.code == code


def test_a_modality_that_the_model_lacks_is_told():
    processor = make_processor(model_config(audio_config=None))
    with pytest.raises(BadInput, match="`audio` was given, but the model reads only text, image") as caught:
        read_sample({"text": "cat", "audio": sound()}, processor, OPTIONS)
    assert caught.value.code == "modality_not_supported"


def test_no_path_or_url_is_opened_whatever_it_is_called(processor, tmp_path, monkeypatch):
    (tmp_path / "x.png").write_bytes(picture())
    opened = []
    monkeypatch.setattr(Path, "read_bytes", lambda self: opened.append(self))
    for name in ("image", "audio"):
        for value in (
            str(tmp_path / "x.png"),
            "file:///etc/passwd",
            "http://localhost/",
            "../x",
            "data:image/png;base64,",
        ):
            with pytest.raises(BadInput) as caught:
                read_sample({name: value}, processor, OPTIONS)
            assert caught.value.code == "not_a_file"
    assert not opened


def test_json_carries_files_in_base64():
    encoded = base64.b64encode(picture()).decode()
    assert sample_of_json({"text": "a", "image": encoded, "audio": None}) == {
        "text": "a", "image": picture(), "audio": None
    }  # fmt: skip


@pytest.mark.parametrize(
    ("row", "code", "words"),
    [
        ([1], "wrong_type", "a sample must be an object, got a list"),
        (None, "wrong_type", "got null"),
        ({"image": 5}, "wrong_type", "the file in base64, got a number"),
        ({"image": {"path": "/etc/passwd"}}, "wrong_type", "got an object"),
        ({"image": "http://x/y.png"}, "not_a_file", "paths and URLs are never opened"),
    ],
)
def test_json_that_is_no_sample_is_told(row, code, words):
    with pytest.raises(BadInput, match=re.escape(words)) as caught:
        sample_of_json(row)
    assert caught.value.code == code


# -- base64 -----------------------------------------------------------------------------------------------------------

NOISE = bytes(range(256)) * 3 + b"\xfb\xff\xbe"  # has "+" and "/" in base64, and no padding
PLAIN = base64.b64encode(NOISE).decode()
PADDED = base64.b64encode(NOISE[:-1]).decode()
SAFE = base64.urlsafe_b64encode(NOISE).decode()
BASE64 = {
    "one line": PLAIN,
    "lines of 76": base64.encodebytes(NOISE).decode(),
    "lines of 76, CRLF": base64.encodebytes(NOISE).decode().replace("\n", "\r\n"),
    "lines of 64": textwrap.fill(PLAIN, 64),
    "CR alone": textwrap.fill(PLAIN, 76).replace("\n", "\r"),
    "indented lines": textwrap.indent(textwrap.fill(PLAIN, 76), "\t  "),
    "a newline at the end": PLAIN + "\n",
    "blanks around": f"  {PLAIN}\t",
    "URL-safe": SAFE,
    "URL-safe in lines": textwrap.fill(SAFE, 76, break_on_hyphens=False),
    "padding missing": PADDED.rstrip("="),
    "padding there": PADDED,
    "too much padding": PADDED + "==",
    "URL-safe without padding": base64.urlsafe_b64encode(NOISE[:-2]).decode().rstrip("="),
    "data: URI": "data:image/png;base64," + PLAIN,
    "data: URI of a sound": "data:audio/wav;base64," + PLAIN,
    "data: URI with a charset": "data:image/svg+xml;charset=utf-8;base64," + PLAIN,
    "data: URI with codecs": "data:audio/webm; codecs=opus; base64," + PLAIN,
    "data: URI of no type": "data:;base64," + PLAIN,
    "data: URI in capitals": "DATA:IMAGE/PNG;BASE64," + PLAIN,
    "data: URI in lines": "data:image/png;base64,\r\n" + base64.encodebytes(NOISE).decode(),
    "data: URI, percent-encoded": "data:image/png;base64," + quote(PLAIN, safe=""),
    "data: URI, URL-safe": "data:image/png;base64," + SAFE,
    "data: URI with a newline before": "\n data:image/png;base64," + PLAIN,
}
WANTED = {"padding missing": NOISE[:-1], "padding there": NOISE[:-1], "too much padding": NOISE[:-1]}
WANTED["URL-safe without padding"] = NOISE[:-2]


@pytest.mark.parametrize("name", BASE64)
def test_base64_is_read_as_tools_write_it(name):
    body = json.loads(json.dumps({"image": BASE64[name], "audio": BASE64[name]}))
    assert sample_of_json(body) == dict.fromkeys(("image", "audio"), WANTED.get(name, NOISE))


@pytest.mark.parametrize("empty", ["null", '""', '"  "', "NaN", '"\\n"'])
def test_nothing_in_json_is_no_file(empty):
    row = sample_of_json(json.loads(f'{{"text": {empty}, "image": {empty}, "audio": {empty}}}'))
    assert row["image"] is row["audio"] is None
    with pytest.raises(BadInput) as caught:
        read_sample(row, make_processor(model_config()), OPTIONS)
    assert caught.value.code == "nothing_given"


NO_BASE64 = {  # what is told, what is not
    "http": ("https://example.org/cat.png", "never opened", "does not belong"),
    "file URL": ("file:///home/me/cat.png", "never opened", "does not belong"),
    "absolute path": ("/etc/passwd", "never opened", "does not belong"),
    "relative path": ("../cat.png", "never opened", "does not belong"),
    "name of a file": ("my cat.png", "never opened", "does not belong"),
    "path of Windows": ("C:\\pictures\\cat.png", "never opened", "does not belong"),
    "home": ("~/cat", "never opened", "does not belong"),
    "a foreign character": (PLAIN[:40] + "*" + PLAIN[40:], "'*' (character 41", "never opened"),
    "no ASCII": (PLAIN + "\u00fc", "'\\xfc'", "never opened"),
    "escaped newlines": (base64.encodebytes(NOISE).decode().replace("\n", "\\n"), "'\\\\'", "never opened"),
    "quotes of Python": (str(base64.b64encode(NOISE)), "decode()", "never opened"),
    "cut off": (PLAIN[:41], "cut off", "never opened"),
    "two in one": (PADDED + PADDED, "'='", "never opened"),
    "data: URI, percent text": ("data:text/plain,hello%20world", "data: URI", "never opened"),
    "data: URI that has no comma": ("data:image/png;base64", "base64", "nothing to answer"),
    "hexadecimal with blanks": ("0x89 50 4e 47 !", "'!'", "never opened"),
}


@pytest.mark.parametrize("name", NO_BASE64)
def test_what_is_no_base64_is_told_by_its_reason(name):
    text, told, not_told = NO_BASE64[name]
    with pytest.raises(BadInput) as caught:
        sample_of_json({"image": text})
    assert caught.value.code == "not_a_file" and "`image`" in caught.value.message
    assert told in caught.value.message and not_told not in caught.value.message
    assert caught.value.message.isascii() and len(caught.value.message) < 400


def test_modalities_are_those_of_the_processor(processor):
    assert processor.modalities == MODALITIES


# -- settings ---------------------------------------------------------------------------------------------------------


def test_settings_come_from_flags_before_the_environment():
    environment = {"MMFUSION_MODEL": "a/b", "MMFUSION_REVISION": "abc", "MMFUSION_MAX_ROWS": "3"}
    options = parse_options(["--max_rows", "5"], environment)
    assert (options.model, options.revision, options.max_rows) == ("a/b", "abc", 5)
    assert parse_options([], environment).max_rows == 3


def test_host_and_port_also_have_the_names_of_gradio_and_a_space_listens_to_all():
    assert (parse_options([], {}).host, parse_options([], {}).port) == ("127.0.0.1", 7860)
    assert parse_options([], {"SPACE_ID": "a/b"}).host == "0.0.0.0"
    options = parse_options([], {"GRADIO_SERVER_NAME": "::1", "GRADIO_SERVER_PORT": "80", "MMFUSION_PORT": "81"})
    assert (options.host, options.port) == ("::1", 81)


def test_lists_are_separated_by_commas():
    environment = {"MMFUSION_API_TOKENS": "one, two,", "MMFUSION_ALLOW_ORIGINS": "https://a.example"}
    options = parse_options([], environment)
    assert options.api_tokens == ("one", "two") and options.allow_origins == ("https://a.example",)


@pytest.mark.parametrize("environment", [{"MMFUSION_MAX_ROWS": "many"}, {"MMFUSION_MAX_ROWS": "0"}])
def test_a_wrong_variable_is_told_like_a_wrong_flag(environment, capsys):
    with pytest.raises(SystemExit) as caught:
        parse_options([], environment)
    assert caught.value.code == 2 and "--max_rows" in capsys.readouterr().err
