"""A copy of the feedback on the Hub, as Parquet that every reader of data sets knows, committed in the background.

Unusual: `CommitScheduler` would upload the whole folder's files under their own names; after a restart of a Space,
whose disk is empty then, a new `metadata.jsonl` would take the place of the old one. So new rows go up as files of
their own, named after the store and the place in it where they begin: a commit that is repeated, because nobody knows
whether it went through, replaces itself, and nothing is there twice.
"""

import atexit
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from huggingface_hub import CommitOperationAdd, CommitScheduler, HfApi

from cli.files import replacing, write_json
from space.feedback import MEDIA, MIB, TABLE, VERDICTS

if TYPE_CHECKING:
    import pyarrow as pa

    from space.feedback import FeedbackStore

log = logging.getLogger("mmfusion")

MAX_PART_BYTES, MAX_PART_ROWS = 64 * MIB, 1_000
CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/*.parquet
tags:
- multimodal
- feedback
---
# Feedback

What visitors of a Space said of its answers, with their consent. `data/` holds samples with their right label, and
`verdicts/` what was said without one. Committed by the Space, row by row as they came in.
"""


class HubCopy(CommitScheduler):
    """Commits new rows of a store every few minutes, in a thread.

    Args:
        store: whose rows.
        repo_id: data set on the Hub; made, private, if it is not there.
        every_minutes: between two commits.
        token: for the Hub; None: the one that is logged in.
        allow_public: whether the data set may be public.

    Raises:
        ValueError: it is public.
        OSError: it cannot be written to.
    """

    def __init__(
        self, store: "FeedbackStore", repo_id: str, every_minutes: float, token: str | None, allow_public: bool
    ):
        self.store = store
        self._push_lock = FileLock(store.folder / ".push.lock", timeout=0)
        self._position_file = store.folder / "pushed.json"
        self._has_card = False
        api = HfApi(token=token)
        open_dataset(api, repo_id, allow_public)
        super().__init__(
            repo_id=repo_id, repo_type="dataset", folder_path=store.folder, every=every_minutes, hf_api=api
        )

    def finish(self, timeout_seconds: float) -> None:
        """Push the rest and stop; what cannot be pushed stays in the folder, for the next start."""
        try:
            self.trigger().result(timeout_seconds)
        except Exception as error:  # of the network or the Hub, of whatever kind: the server has to stop all the same
            log.error("the last feedback did not reach %s (%s: %s)", self.repo_id, type(error).__name__, error)
        self.stop()
        atexit.unregister(self._push_to_hub)

    def push_to_hub(self) -> None:
        """Commit what is new; called by the scheduler, one call at a time."""
        try:
            with self._push_lock:
                for name in (TABLE, VERDICTS):
                    self._push_table(name)
        except Timeout:  # another process that shares the folder is at it
            log.debug("feedback is being pushed by another process")

    def _push_table(self, name: str) -> None:
        start = self._positions().get(name, 0)
        for rows, end in parts(self.store.folder / name, start):
            operations = [self._operation(name, rows, start), *self._card()]
            self.api.create_commit(
                self.repo_id, operations, repo_type="dataset", commit_message=f"Feedback, {len(rows)} row(s)"
            )
            start = end
            with replacing(self._position_file) as beside:
                write_json(beside, {**self._positions(), name: end})

    def _operation(self, name: str, rows: list[dict[str, Any]], start: int) -> CommitOperationAdd:
        place = f"{self.store.id}-{start:012d}"
        if name == VERDICTS:
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            return CommitOperationAdd(f"verdicts/{place}.jsonl", lines.encode())
        return CommitOperationAdd(f"data/train-{place}.parquet", self._parquet(rows))

    def _parquet(self, rows: list[dict[str, Any]]) -> bytes:
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.Table.from_pylist([self._with_media(row) for row in rows], schema(self.store.problem_type, rows))
        file = io.BytesIO()
        pq.write_table(table, file)
        return file.getvalue()

    def _with_media(self, row: dict[str, Any]) -> dict[str, Any]:
        """Put files in the place of their names; one that was deleted since is left out."""
        files = {name: self.store.folder / row[name] for name in MEDIA if name in row}
        return row | {
            name: {"bytes": path.read_bytes(), "path": path.name} if path.is_file() else None
            for name, path in files.items()
        }

    def _card(self) -> list[CommitOperationAdd]:
        """Give the data set's card for the first commit, where it has none."""
        self._has_card = self._has_card or self.api.file_exists(self.repo_id, "README.md", repo_type="dataset")
        return [] if self._has_card else [CommitOperationAdd("README.md", CARD.encode())]

    def _positions(self) -> dict[str, int]:
        if not self._position_file.exists():
            return {}
        return json.loads(self._position_file.read_text(encoding="utf-8"))


def open_dataset(api: HfApi, repo_id: str, allow_public: bool) -> None:
    """Make the data set if it is not there, and look whether it is as private as visitors may expect."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        api.create_repo(repo_id, repo_type="dataset", private=True, exist_ok=True)
        api.auth_check(repo_id, repo_type="dataset", write=True)  # one that exists is "made" by any token
        is_private = api.dataset_info(repo_id).private
    except (HfHubHTTPError, HFValidationError, httpx2.HTTPError) as error:
        reason = " ".join(str(error).split())
        raise OSError(
            f"feedback cannot go to the data set `{repo_id}` ({reason}): check the name, and that the token may write "
            "there."
        ) from error
    if not is_private and not allow_public:
        raise ValueError(
            f"the data set `{repo_id}` is public, and visitors' feedback would be: make it private, or allow it "
            "(`allow_public`)."
        )


def parts(path: Path, start: int) -> Iterator[tuple[list[dict[str, Any]], int]]:
    """Give the whole rows behind a place in a file, some at a time, each time with the place where they end."""
    if not path.exists():
        return
    rows, size, end = [], 0, start
    with path.open("rb") as file:
        file.seek(start)
        for line in file:
            if not line.endswith(b"\n"):  # somebody is writing it now
                break
            rows.append(json.loads(line))
            end += len(line)
            files = [path.parent / rows[-1][name] for name in MEDIA if name in rows[-1]]
            size += len(line) + sum(file.stat().st_size for file in files if file.is_file())
            if size > MAX_PART_BYTES or len(rows) == MAX_PART_ROWS:
                yield rows, end
                rows, size = [], 0
    if rows:
        yield rows, end


def schema(problem_type: str, rows: list[dict[str, Any]]) -> "pa.Schema":
    """Give one schema for all parts, whatever their rows have; it tells viewers what is a picture and what a sound."""
    from datasets import Audio, Features, Image, List, Value

    label: Any = Value("string")
    if problem_type == "regression":
        label = Value("float64")
    has_several = problem_type == "multi_label_classification" or isinstance(rows[0]["predicted"], list)
    label, score = (List(label), List(Value("float64"))) if has_several else (label, Value("float64"))
    kinds = {"image": Image(), "audio": Audio(), "label": label, "predicted": label, "score": score}
    names = (
        "id", "created_at", "text", "image", "audio", "label", "verdict", "predicted", "score", "model", "revision"
    )  # fmt: skip
    return Features({name: kinds.get(name, Value("string")) for name in names}).arrow_schema
