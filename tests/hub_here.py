"""The local Hub for `datasets` in this very process, and small tables to push to it.

`local_hub.online` sets what `huggingface_hub` has read from its environment; `datasets` keeps a copy of its own.
"""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import datasets
import numpy as np
import pyarrow as pa
import soundfile
from huggingface_hub import HfApi, constants
from local_hub import LocalHub, online
from PIL import Image

from data import LabelMap, read_table
from hub.dataset import export_dataset


@contextlib.contextmanager
def datasets_online(hub: LocalHub, home: Path, token: str | None = "hf_alice_write") -> Iterator[HfApi]:
    """`datasets` and `huggingface_hub` of this process talk to the local Hub, with empty caches under `home`."""
    with contextlib.ExitStack() as stack:
        api = stack.enter_context(online(hub, token))
        patches = [
            (constants, "HF_HUB_CACHE", str(home / "hub")),
            (datasets.config, "HF_ENDPOINT", hub.url),
            (datasets.config, "HUB_DATASETS_URL", hub.url + "/datasets/{repo_id}/resolve/{revision}/{path}"),
            (datasets.config, "HF_HUB_OFFLINE", False),
            (datasets.config, "HF_DATASETS_CACHE", home / "datasets"),
            (datasets.config, "EXTRACTED_DATASETS_PATH", home / "datasets" / "extracted"),
            (datasets.config, "STREAMING_READ_MAX_RETRIES", 1),
            (datasets.config, "STREAMING_READ_RETRY_INTERVAL", 0),
            (datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0),
        ]
        for place, name, value in patches:
            stack.enter_context(mock.patch.object(place, name, value))
        nobody = {"HF_TOKEN": "", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}
        environment = nobody if token is None else {"HF_TOKEN": token}
        stack.enter_context(mock.patch.dict("os.environ", environment))
        yield api


def picture(number: int) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 255, (12, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def sound(number: int) -> bytes:
    file = io.BytesIO()
    wave = np.sin(np.arange(1600) * (number + 1) / 40) * 0.5
    soundfile.write(file, wave, 8000, format="FLAC")
    return file.getvalue()


def write_rows(folder: Path, num_rows: int, labels=("bad", "good"), first: int = 0, name: str = "train") -> Path:
    """A CSV with files beside it: many rows lack their picture, their sound or their text, none lacks all."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["text,image,audio,label,secret"]
    for number in range(first, first + num_rows):
        image, audio = f"{number}.png", f"{number}.flac"
        (folder / image).write_bytes(picture(number))
        (folder / audio).write_bytes(sound(number))
        has_text = number % 5 < 4 or number % 3 == 2
        cells = [f"words of row {number}" * has_text, image * (number % 3 < 2), audio * (number % 4 != 2)]
        lines.append(",".join([*cells, labels[number % len(labels)], "not for publication"]))
    path = folder / f"{name}.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def push(api: HfApi, repo_id: str, folder: Path, private: bool = False) -> str:
    """Pushes a folder as a data set; its commit."""
    api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
    return api.upload_folder(repo_id=repo_id, repo_type="dataset", folder_path=folder).oid


def push_tables(api: HfApi, repo_id: str, folder: Path, **files: Path) -> str:
    """Pushes tables as `push_to_hub.py --dataset` does; the commit."""
    tables = {split: read_table(path) for split, path in files.items()}
    folder.mkdir(parents=True)
    export_dataset(tables, LabelMap.fit(tables["train"]), folder, repo_id=repo_id, progress=False)
    return push(api, repo_id, folder)


def push_arrow(api: HfApi, repo_id: str, folder: Path, columns: dict, features: datasets.Features) -> str:
    """Pushes a Parquet file as a stranger may have written it: any cell, under any features, without a card."""
    import pyarrow.parquet as pq

    folder.mkdir(parents=True)
    pq.write_table(pa.table(columns, schema=features.arrow_schema), folder / "train.parquet")
    return push(api, repo_id, folder)
