"""What visitors say of the answers, kept as a table that `train.py` reads as it is.

A row that can be learned from (something of the sample is kept, and the right label is known) goes into
`metadata.jsonl`, every other verdict into `verdicts.jsonl`. Unusual: pictures and sounds are not stored as they came
but as the model saw and heard them, written anew: no place in a photo's EXIF, no name in a sound's tags, nothing that
a file carries besides. They lie beside the table under random names.

Rows are appended under a lock that threads and processes share, and flushed to the disk; what a killed process left of
a row is cut off before the next one.
"""

import io
import json
import math
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cli.files import replacing, write_json
from cli.scored import predicted_labels
from space.errors import BadInput, Refusal, shown
from space.redaction import masker

MIB = 1024 * 1024
TABLE, VERDICTS = "metadata.jsonl", "verdicts.jsonl"
MEDIA = {"image": ".png", "audio": ".flac"}
LOCK_SECONDS = 10


@dataclass(frozen=True)
class Quota:
    """How much visitors may fill.

    Args:
        max_row_bytes: of one row, its picture and sound included.
        max_folder_bytes: of the whole folder; when it is full, nothing more is stored.
        max_image_side: pixels of the longer side of a stored picture; larger ones are shrunk.
    """

    max_row_bytes: int = 8 * MIB
    max_folder_bytes: int = 1024 * MIB
    max_image_side: int = 1024


class FeedbackStore:
    """A folder of feedback for one model; threads and processes may share it.

    Args:
        folder: made if it is not there.
        labels: names of the model's labels, in its order.
        problem_type: of the model; a folder holds one kind.
        thresholds: of a multi-label model, as `cli.scored.label_thresholds` gives them.
        model: what the answers come from, as stored with every row.
        revision: its commit; None: not known.
        keep_media: whether pictures and sounds are stored of those who agree to it.
        mask_text: whether e-mail addresses, phone and card numbers are masked in stored texts.
        quota: how much may be stored.
        hub_dataset: `owner/name` of a private data set on the Hub to which new rows are committed in the background;
            None: they stay here.
        every_minutes: how often that is done.
        token: for the Hub; None: the one that is logged in.
        allow_public: whether that data set may be public.

    Raises:
        ValueError: the folder holds feedback of another kind of model, or the Hub data set is public.
        OSError: the Hub data set cannot be written to.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        labels: Sequence[str],
        problem_type: str,
        thresholds: Mapping[str, float] | None = None,
        model: str,
        revision: str | None = None,
        keep_media: bool = True,
        mask_text: bool = False,
        quota: Quota | None = None,
        hub_dataset: str | None = None,
        every_minutes: float = 5,
        token: str | None = None,
        allow_public: bool = False,
    ):
        self.folder = Path(folder).expanduser().resolve()
        self.labels, self.problem_type, self.thresholds = list(labels), problem_type, thresholds
        self.model, self.revision = model, revision
        self.keep_media, self.quota = keep_media, quota or Quota()
        self._stored_text = masker(mask_text)
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = FileLock(self.folder / ".lock", timeout=LOCK_SECONDS)
        with self._lock:
            self.id = self._identify()
            for name in (TABLE, VERDICTS):
                cut_torn_row(self.folder / name)
            self._note_usage(sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file()))
        self._copy = None
        if hub_dataset is not None:
            from space.feedback_hub import HubCopy

            self._copy = HubCopy(self, hub_dataset, every_minutes, token, allow_public)

    def add(
        self,
        sample: Mapping[str, Any],
        predictions: Sequence[Mapping[str, Any]],
        verdict: str,
        right_label: Any = None,
        *,
        consent: bool,
        media_consent: bool = False,
    ) -> dict[str, Any]:
        """Store what a visitor says of one answer.

        Args:
            sample: the opened sample that was answered, as `inputs.read_sample` gives it.
            predictions: the answer, labels with scores, as `tasks.predict` gives it.
            verdict: "right" or "wrong".
            right_label: of a wrong answer the right one, where the visitor knows it: a name, a list of names, or
                numbers, as the model's problem is.
            consent: whether the visitor agrees that text and verdict are stored; without it nothing is.
            media_consent: whether the visitor agrees that the picture and the sound are stored, too.

        Returns:
            The row as it was stored.

        Raises:
            BadInput: no consent, a verdict or label that is not allowed, a row that is too large.
            Refusal: the folder is full, or the disk is.
        """
        if consent is not True:
            raise BadInput("bad_parameter", "`consent` is missing: feedback is stored only of those who agree to it.")
        said = self._read_verdict(predictions, verdict, right_label)
        media = self._encode_media(sample) if self.keep_media and media_consent is True else {}
        row = {"id": uuid.uuid4().hex, "created_at": datetime.now(UTC).isoformat(timespec="seconds")}
        if text := (sample.get("text") or "").strip():
            row["text"] = self._stored_text(text)
        row |= {name: f"{name}/{row['id']}{MEDIA[name]}" for name in media}
        row |= {**said, "model": self.model, "revision": self.revision}
        self._store(row, media)
        return row

    def close(self, timeout_seconds: float = 30) -> None:
        """Push what is not pushed yet, and end the background work."""
        if self._copy is not None:
            self._copy.finish(timeout_seconds)

    # -- what was said ------------------------------------------------------------------------------------------------

    def _read_verdict(self, predictions: Sequence[Mapping[str, Any]], verdict: str, right_label: Any) -> dict:
        if verdict not in ("right", "wrong"):
            raise BadInput("bad_parameter", f"`verdict` is {shown(str(verdict))}: allowed are right, wrong.")
        predicted, score = self._read_predictions(predictions)
        label = predicted if verdict == "right" else None
        if right_label is not None:
            label = self._read_label(right_label)
            if verdict == "right" and label != predicted:
                raise BadInput("bad_parameter", "`right_label` differs from an answer that is called right.")
            if verdict == "wrong" and label == predicted:
                raise BadInput("bad_parameter", "`right_label` is the very answer that is called wrong.")
        known = {"label": label, "verdict": verdict, "predicted": predicted, "score": score}
        return {name: value for name, value in known.items() if value is not None}

    def _read_predictions(self, predictions: Sequence[Mapping[str, Any]]) -> tuple[Any, Any]:
        """Give (what was predicted, how sure), in the form that a label has."""
        scores = {entry["label"]: float(entry["score"]) for entry in predictions}
        if scores.keys() != set(self.labels) or not all(map(math.isfinite, scores.values())):
            raise BadInput("bad_parameter", "`predictions` must hold a finite score for each label of the model.")
        if self.problem_type == "regression":
            values = [scores[label] for label in self.labels]
            return (values[0] if len(values) == 1 else values), None
        if self.problem_type == "multi_label_classification":
            chosen = predicted_labels({label: scores[label] for label in self.labels}, self.thresholds)
            return chosen, [scores[label] for label in chosen]
        best = max(scores, key=scores.get)
        return best, scores[best]

    def _read_label(self, value: Any) -> Any:
        if self.problem_type == "regression":
            numbers = [self._read_number(item) for item in (value if isinstance(value, list) else [value])]
            if len(numbers) != len(self.labels):
                raise BadInput("bad_parameter", f"`right_label` must hold {len(self.labels)} number(s).")
            return numbers[0] if len(numbers) == 1 else numbers
        names = value if isinstance(value, list) else [value]
        if unknown := [name for name in names if name not in self.labels]:
            raise BadInput(
                "bad_parameter", f"`right_label` is {shown(str(unknown[0]))}, which is no label of the model."
            )
        if self.problem_type == "multi_label_classification":
            return [label for label in self.labels if label in names]
        if len(names) != 1:
            raise BadInput("bad_parameter", f"`right_label` holds {len(names)} labels: give one.")
        return names[0]

    def _read_number(self, value: Any) -> float:
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise BadInput("bad_parameter", f"`right_label` is {shown(str(value))}, which is no finite number.")
        return number

    # -- what it was said of ------------------------------------------------------------------------------------------

    def _encode_media(self, sample: Mapping[str, Any]) -> dict[str, bytes]:
        encoders = {"image": self._encode_image, "audio": encode_audio}
        return {name: encode(sample[name]) for name, encode in encoders.items() if sample.get(name) is not None}

    def _encode_image(self, image) -> bytes:
        """Write the pixels and nothing else: what Pillow keeps in `info` would go into the file."""
        plain = image.convert("RGB")  # a copy in any case
        plain.thumbnail((self.quota.max_image_side, self.quota.max_image_side))  # never enlarges
        plain.info = {}
        file = io.BytesIO()
        plain.save(file, "PNG")
        return file.getvalue()

    # -- storing ------------------------------------------------------------------------------------------------------

    def _store(self, row: dict[str, Any], media: Mapping[str, bytes]) -> None:
        line = json.dumps(row, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace") + b"\n"
        size = len(line) + sum(map(len, media.values()))
        if size > self.quota.max_row_bytes:
            raise BadInput(
                "body_too_large",
                f"this feedback has {size:,} bytes, the limit is {self.quota.max_row_bytes:,}: nothing was stored.",
            )
        can_be_learned = "label" in row and any(name in row for name in ("text", *MEDIA))
        try:
            with self._lock:
                used = self._usage()
                if used + size > self.quota.max_folder_bytes:
                    raise Refusal("storage_full", "there is no room for more feedback: nothing was stored.")
                self._write(row, media, line, TABLE if can_be_learned else VERDICTS)
                self._note_usage(used + size)
        except Timeout:
            raise Refusal("overloaded", "too much feedback at once: try again in a second.") from None
        except OSError as error:
            raise Refusal("storage_full", f"feedback cannot be stored now ({error.strerror}).") from error

    def _write(self, row: Mapping[str, Any], media: Mapping[str, bytes], line: bytes, table: str) -> None:
        """Write media before the row that names them: a reader never sees a name without its file."""
        paths = {self.folder / row[name]: content for name, content in media.items()}
        try:
            for path, content in paths.items():
                with replacing(path) as beside:
                    write_through(beside, content, "wb")
            cut_torn_row(self.folder / table)
            write_through(self.folder / table, line, "ab")
        except OSError:
            for path in paths:
                path.unlink(missing_ok=True)
            cut_torn_row(self.folder / table)
            raise

    def _identify(self) -> str:
        """Give the folder's random name, made once; refuse a folder of another kind of model."""
        path = self.folder / "store.json"
        if not path.exists():
            with replacing(path) as beside:
                write_json(beside, {"id": uuid.uuid4().hex[:12], "problem_type": self.problem_type})
        known = json.loads(path.read_text(encoding="utf-8"))
        if known["problem_type"] != self.problem_type:
            raise ValueError(
                f"`{self.folder}` holds feedback for {known['problem_type']}, but the model does {self.problem_type}: "
                "give another folder."
            )
        return known["id"]

    def _usage(self) -> int:
        return int((self.folder / ".usage").read_text() or 0)

    def _note_usage(self, num_bytes: int) -> None:
        with replacing(self.folder / ".usage") as beside:
            beside.write_text(str(num_bytes))


def encode_audio(audio: Mapping[str, Any]) -> bytes:
    """Write what the model hears as FLAC of 16 bits."""
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, audio["array"], audio["sampling_rate"], format="FLAC", subtype="PCM_16")
    return file.getvalue()


def write_through(path: Path, content: bytes, mode: str) -> None:
    """Write in one piece, and wait until it is on the disk."""
    with path.open(mode, buffering=0) as file:
        if file.write(content) != len(content):
            raise OSError(None, "No space left on device")
        os.fsync(file.fileno())


def cut_torn_row(path: Path) -> None:
    """Cut off a last line that has no end: its writer was killed in the middle of it."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        keep = end
        while keep:
            start = max(0, keep - MIB)
            file.seek(start)
            last = file.read(keep - start).rfind(b"\n")
            if last >= 0:
                keep = start + last + 1
                break
            keep = start
        if keep < end:
            file.truncate(keep)
