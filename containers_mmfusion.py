"""Sound files whose headers are guesses, wrong or unknown: what libsndfile is given instead of them.

Unusual here: no file is rewritten. A `Part` is a view of an open file in which some bytes are others, such as the size
of a chunk or the count of samples, and which may claim to be longer than it is.

This file travels to the Hub beside the weights.
"""

import io
import os
import re
import struct
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

try:
    import soundfile
except ImportError:
    soundfile = None

_XING = re.compile(rb"(?:Xing|Info)\0\0\0([\x01-\x0f])")  # what counts an MP3 file; its flags say what follows
_MPEG_KBIT = (
    (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
)
_OTHER_STARTS = (b"FO", b"ri")  # AIFF and W64, of which every first frame of MPEG would be an accident


class Part:
    """Bytes of an open file for soundfile, from `start` to `stop`, with some of them replaced.

    Args:
        file: An open binary file.
        start: Where the part begins.
        stop: Where it ends; None: at the end of the file.
        patches: (place in the part, bytes that stand there instead).
        promised: Samples that the header promises, where libsndfile is not to know; None: what libsndfile reads.
        path: Of the file, which libsndfile may open by itself: the part is all of it, and as it is.
    """

    def __init__(
        self,
        file: Any,
        start: int = 0,
        stop: int | None = None,
        patches: Sequence[tuple[int, bytes]] = (),
        promised: int | None = None,
        path: str | None = None,
    ):
        self.file, self.start, self.patches, self.promised, self.path = file, start, tuple(patches), promised, path
        self.num_bytes = (file.seek(0, os.SEEK_END) if stop is None else stop) - start
        self.claimed, self.place = self.num_bytes, 0

    def __len__(self) -> int:
        return self.num_bytes

    def claiming(self, num_bytes: int, patches: Sequence[tuple[int, bytes]]) -> "Part":
        """Return the same part, which says that it is longer than it is: mpg123 takes its estimate from that."""
        part = Part(self.file, self.start, self.start + self.num_bytes, (*self.patches, *patches))
        part.claimed = num_bytes
        return part

    def peek(self, place: int, count: int) -> bytes:
        """Return bytes of the part, unpatched; fewer at its end."""
        self.file.seek(self.start + place)
        return self.file.read(max(0, min(count, self.num_bytes - place)))

    # What soundfile asks of a file.

    def tell(self) -> int:
        return self.place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        place = offset + (0, self.place, self.claimed)[whence]
        if place >= 0:  # else libsndfile sees that it is not where it wanted to be, and gives up
            self.place = place
        return self.place

    def read(self, count: int = -1) -> bytes:
        buffer = bytearray(count if count >= 0 else max(0, self.num_bytes - self.place))
        return bytes(buffer[: self.readinto(buffer)])

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        data = self.peek(self.place, len(view))
        if not data and self.claimed - 128 <= self.place < self.claimed:  # where an ID3v1 tag is looked for
            data = bytes(min(len(view), self.claimed - self.place))
        view[: len(data)] = data
        for place, patch in self.patches:
            first, last = max(place, self.place), min(place + len(patch), self.place + len(data))
            if first < last:
                view[first - self.place : last - self.place] = patch[first - place : last - place]
        self.place += len(data)
        return len(data)

    def write(self, data: Any) -> int:  # soundfile takes for a file only what has this too
        raise io.UnsupportedOperation("write")


class InOrder(soundfile.SoundFile if soundfile else object):
    """A sound that is read from its beginning to its end.

    The base class seeks after each read, which costs, and fails where the length is unknown.
    """

    def __init__(self, part: Part):
        super().__init__(part.path or part)

    def seekable(self) -> bool:
        return False


def sound_parts(file: Any, path: Path | None) -> list[Part]:
    """Return the sounds that follow one another in a file, their headers mended where these are known to mislead."""
    start = _behind_id3(file)
    part = Part(file, start, path=str(path) if path is not None and start == 0 else None)
    kind = part.peek(0, 4)
    if kind == b"OggS":
        links = _ogg_links(part)
        return [Part(file, a + start, b + start) for a, b in pairwise(links)] if len(links) > 2 else [part]
    if kind == b"fLaC":
        packed = int.from_bytes(part.peek(18, 8), "big")
        promised, unknown = packed & 0xFFFFFFFFF, packed >> 36 << 36  # the low 36 bits: 0 is "unknown"
        return [Part(file, start, None, [(18, unknown.to_bytes(8, "big"))], promised)]
    mend = {b"RIFF": _mend_wav, b"RIFX": _mend_wav, b"RF64": _mend_rf64, b"BW64": _mend_rf64,
            b"caff": _mend_caf, b".snd": _mend_au}.get(kind)  # fmt: skip
    if kind == b"RIFF" and (place := _mp3_in_wav(part)):
        return [Part(file, start + place)]
    if mend is not None:
        patches = mend(part)
        return [Part(file, start, None, patches)] if patches else [part]
    first = _first_mpeg_frame(part.peek(0, 1 << 16)) if kind[:2] not in _OTHER_STARTS else 0
    return [Part(file, start + first) if first else part]


def _behind_id3(file: Any) -> int:
    """Return where the ID3v2 tags in front of a sound end, which libsndfile counts as sound or stumbles over."""
    place, part = 0, Part(file)
    while (head := part.peek(place, 10))[:3] == b"ID3" and len(head) == 10:
        size = sum((byte & 127) << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))
        place += 10 + size + (10 if head[5] & 16 else 0)
    return place


def _chunks(part: Part, place: int, head: str) -> Iterator[tuple[bytes, int, int]]:
    """Yield (name, size as it is stated, place of the content) of the chunks of a RIFF, RF64 or CAF file."""
    for _ in range(1000):
        content = place + struct.calcsize(head)
        raw = part.peek(place, content - place)
        if len(raw) < content - place:
            return
        name, size = struct.unpack(head, raw)
        yield name, size, content
        place = content + size + (size & 1 if head[-1] in "iI" else 0)


def _mend_wav(part: Part) -> list[tuple[int, bytes]]:
    head = ">4sI" if part.peek(0, 4) == b"RIFX" else "<4sI"
    for name, size, place in _chunks(part, 12, head):
        if name == b"data":
            rest = len(part) - place
            if size or rest < 2 or _is_chunk(part, place, head):
                return []
            return [(place - 4, struct.pack(head[0] + "I", min(rest, 0xFFFFFFFF)))]
    return []


def _mp3_in_wav(part: Part) -> int:
    """Return where the frames of MP3 begin in a WAV file that holds such; 0 where it holds anything else."""
    is_mp3 = False
    for name, _, place in _chunks(part, 12, "<4sI"):
        is_mp3 = is_mp3 or (name == b"fmt " and part.peek(place, 2) == b"\x55\0")
        if name == b"data":
            return place if is_mp3 else 0
    return 0


def _is_chunk(part: Part, place: int, head: str) -> bool:
    """Whether a chunk begins here, that is, whether the data chunk of size 0 before it is empty indeed."""
    name, size, content = next(_chunks(part, place, head), (b"", 0, place))
    return len(name) == 4 and name.isascii() and name.decode().isprintable() and content + size <= len(part)


def _mend_rf64(part: Part) -> list[tuple[int, bytes]]:
    patches = [(0, b"RF64")] if part.peek(0, 4) == b"BW64" else []
    if part.peek(12, 4) == b"ds64" and part.peek(28, 8) == bytes(8):
        for name, _, place in _chunks(part, 12, "<4sI"):
            if name == b"data":
                patches.append((28, (len(part) - place).to_bytes(8, "little")))
                break
    return patches


def _mend_caf(part: Part) -> list[tuple[int, bytes]]:
    for name, size, place in _chunks(part, 8, ">4sq"):
        if size < 0:  # -1: until the end
            return [(place - 8, struct.pack(">q", len(part) - place))] if name == b"data" else []
    return []


def _mend_au(part: Part) -> list[tuple[int, bytes]]:
    return [(8, b"\xff" * 4)] if part.peek(8, 4) == bytes(4) else []


def _ogg_links(part: Part) -> list[int]:
    """Return where each of the chained streams of an OGG file begins, and where the last one ends."""
    starts, place, was_first = [0], 0, True
    while (head := part.peek(place, 27))[:4] == b"OggS" and len(head) == 27:
        is_first = bool(head[5] & 2)  # of its stream; several such pages stand together where streams are mixed
        if is_first and not was_first:
            starts.append(place)
        was_first = is_first
        place += 27 + head[26] + sum(part.peek(place + 27, head[26]))
    return [*starts, len(part)]


def _first_mpeg_frame(data: bytes) -> int:
    """Return where the first of three MPEG frames in a row begins; 0 where there is none."""
    for match in re.finditer(rb"\xff(?=[\xe2-\xff])", data):
        place = match.start()
        for _ in range(3):
            size = _mpeg_frame_size(data[place : place + 4])
            if size == 0 or place + size >= len(data):
                break
            place += size
        else:
            return match.start()
    return 0


def _mpeg_frame_size(head: bytes) -> int:
    """Return the bytes of an MPEG frame of layer 3; 0 where this is no head of one."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2:
        return 0
    version, rate, index = head[1] >> 3 & 3, head[2] >> 2 & 3, head[2] >> 4  # 3: MPEG 1, 2: MPEG 2, 0: MPEG 2.5
    if version == 1 or rate == 3 or index in (0, 15):
        return 0
    hertz = (44_100, 48_000, 32_000)[rate] >> {3: 0, 2: 1, 0: 2}[version]
    return (144 if version == 3 else 72) * 1000 * _MPEG_KBIT[version == 3][index - 1] // hertz + (head[2] >> 1 & 1)


def count_of_frames(part: Part) -> tuple[int | None, int | None]:
    """Return (where the head of an MP3 file counts its frames, its count of bytes), each None where it does not."""
    head = part.peek(0, 4096)
    if (found := _XING.search(head)) is None:
        return None, None
    flags, place = found[1][0], found.end()
    count_at = place if flags & 1 else None
    place += 4 if flags & 1 else 0
    return count_at, int.from_bytes(head[place : place + 4], "big") if flags & 2 else None


def _samples_behind(sound: Any, place: int) -> int:
    try:
        sound.seek(place)
        return len(sound.read(1))
    except soundfile.SoundFileError:
        return 0


__all__ = ["InOrder", "Part", "count_of_frames", "sound_parts"]
