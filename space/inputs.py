"""A stranger's text, picture and sound, from the page or over HTTP, into one sample of the pipeline, or a `BadInput`.

Unusual here: a `str` where a file belongs is refused whatever it says, so no path is opened and no URL fetched; only
this program's own `Path`s (of uploads that Gradio keeps) are read. What is cheap is checked at once (`check_sample`);
opening files is slow and belongs in a thread (`open_sample`). Both look at sizes before they decode.
"""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cells_mmfusion import is_empty
from space.base64_files import file_of_base64, json_type
from space.errors import BadInput, shown
from space.options import Options

MODALITIES = ("text", "image", "audio")


def read_sample(given: Mapping[str, Any], processor, options: Options) -> dict[str, Any]:
    """Check and open one sample; see `check_sample` and `open_sample`."""
    return open_sample(check_sample(given, processor.modalities, options), processor, options)


def check_sample(given: Mapping[str, Any], modalities: tuple[str, ...], options: Options) -> dict[str, Any]:
    """Check names, types and sizes, without opening a file.

    Args:
        given: any of "text" (str), "image" and "audio" (bytes of a file, or a `Path` that this program made); None,
            NaN and blanks mean that the modality is absent.
        modalities: what the model reads.
        options: the limits.

    Returns:
        Only what is present.

    Raises:
        BadInput: nothing_given, wrong_type, unknown_field, not_a_file, modality_not_supported, text_too_long,
            body_too_large.
    """
    if unknown := [name for name in given if name not in MODALITIES]:
        raise BadInput("unknown_field", f"{shown(unknown[0])} is not known: give any of {', '.join(MODALITIES)}.")
    checks = {"text": check_text, "image": check_file, "audio": check_file}
    present = {}
    for name in MODALITIES:
        value = given.get(name)
        if is_empty(value):
            continue
        checks[name](name, value, options)
        if name not in modalities:
            raise BadInput(
                "modality_not_supported", f"`{name}` was given, but the model reads only {', '.join(modalities)}."
            )
        present[name] = value
    if not present:
        raise BadInput("nothing_given", f"nothing to answer: give at least one of {', '.join(modalities)}.")
    return present


def check_text(name: str, value: Any, options: Options) -> None:
    """Refuse what is no text, or too long."""
    if not isinstance(value, str):
        raise BadInput("wrong_type", f"`{name}` must be a string, got {type(value).__name__}.")
    if len(value) > options.max_text_chars:
        raise BadInput(
            "text_too_long", f"`{name}` has {len(value):,} characters, the limit is {options.max_text_chars:,}."
        )


def check_file(name: str, value: Any, options: Options) -> None:
    """Refuse what is no file, or too large."""
    if isinstance(value, str):
        raise BadInput(
            "not_a_file", f"`{name}` must be a file, got the text {shown(value)}: paths and URLs are never opened."
        )
    if not isinstance(value, bytes | Path):
        raise BadInput("wrong_type", f"`{name}` must be a file, got {type(value).__name__}.")
    size = len(value) if isinstance(value, bytes) else value.stat().st_size
    if size > options.max_body_bytes:
        raise BadInput("body_too_large", f"`{name}` has {size:,} bytes, the limit is {options.max_body_bytes:,}.")


def open_sample(present: Mapping[str, Any], processor, options: Options) -> dict[str, Any]:
    """Open what `check_sample` let through.

    Returns:
        A sample for the pipeline: "text" (str), "image" (a PIL image) and "audio" ({"array", "sampling_rate"}), as far
        as present.

    Raises:
        BadInput: image_unreadable, audio_unreadable, audio_too_long.
    """
    openers = {"image": open_image, "audio": open_audio}
    sample = {"text": present["text"]} if "text" in present else {}
    for name in [name for name in openers if name in present]:  # in this order: of two bad files the first is told
        value = present[name]
        content = value.read_bytes() if isinstance(value, Path) else value
        sample[name] = openers[name](content, processor, options)
    return sample


def open_image(content: bytes, processor, options: Options):
    """Open a picture; the processor reads its header, and refuses too many pixels, before it decodes."""
    try:
        return processor.decode_image(content)
    except ValueError as error:
        raise BadInput("image_unreadable", sentence(f"`image`: {error}")) from None


def open_audio(content: bytes, processor, options: Options) -> dict[str, Any]:
    """Open as much of a sound as the model hears; a longer one than allowed is refused."""
    try:
        array = processor.decode_audio(content)
    except ValueError as error:
        raise BadInput("audio_unreadable", sentence(f"`audio`: {error}")) from None
    seconds = seconds_of(content, options.max_audio_seconds)  # after it was read: what is no sound is told as such
    if seconds > options.max_audio_seconds:
        raise BadInput(
            "audio_too_long", f"`audio` lasts {seconds:,.0f} s, the limit is {options.max_audio_seconds:,.0f} s."
        )
    return {"array": array, "sampling_rate": processor.audio_sampling_rate}


def seconds_of(content: bytes, limit: float) -> float:
    """Return how long a sound lasts; where its header, maybe a guess, says more than `limit`, count the samples.

    Args:
        content: A file that the processor could read; 0 is returned where only its opener can.
        limit: In seconds; not much more than these are decoded.
    """
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(content)) as sound:
            seconds, most = sound.frames / sound.samplerate, limit * sound.samplerate
            if seconds <= limit or (count := _count_samples(sound, most)) > most:
                return seconds
            return count / sound.samplerate
    except soundfile.SoundFileError:
        return 0.0


def _count_samples(sound, most: float) -> int:
    import soundfile

    count = 0
    try:
        while count <= most and (block := len(sound.read(sound.samplerate, dtype="int16"))):
            count += block
    except soundfile.SoundFileError:  # the end, where the header knows of none
        pass
    return count


def sample_of_json(row: Any) -> dict[str, Any]:
    """Turn one JSON object, with files in base64, into what `check_sample` takes.

    Raises:
        BadInput: wrong_type, not_a_file.
    """
    if not isinstance(row, dict):
        raise BadInput("wrong_type", f"a sample must be an object, got {json_type(row)}.")
    return {name: file_of_base64(name, row[name]) if name in ("image", "audio") else row[name] for name in row}


def sentence(told: str) -> str:
    return told if told.endswith(("?", "!", ".")) else f"{told}."
