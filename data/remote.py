"""Parquet shards that lie elsewhere: on the Hub (`hf://`), in a bucket, or wherever else fsspec finds its way.

What is unusual: shards come here once, whole, and are kept under what the storage says of them (size, time, ETag), so
that a shard that has changed there is fetched anew. From then on they are read like those that lie here, mapped into
memory. An address is typed by the user; what stands in the cells of such a table is not: they hold the media as bytes,
and a path in them is followed nowhere.
"""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow.parquet as pq

PACKAGES = {"fsspec.implementations.http": "aiohttp", "fsspec.implementations.sftp": "paramiko"}
MAX_AT_ONCE = 8


@dataclass(frozen=True)
class RemoteShards:
    """What an address leads to.

    Args:
        addresses: Of each shard, in the order of their names.
        paths: Where the shards lie now that they are here.
        origin: What identifies them for good, where there is such a thing: `hub_id` and `revision`.
    """

    addresses: tuple[str, ...]
    paths: tuple[str, ...]
    origin: dict[str, str]


def local_path(address: str) -> str | None:
    """The path that a `file://` address means; None for any other address."""
    from fsspec.core import strip_protocol

    return strip_protocol(address) if address.startswith(("file://", "local://")) else None


def fetch_shards(address: str) -> RemoteShards:
    """Finds the Parquet files that an address or a glob of addresses means, and has them here.

    Raises:
        FileNotFoundError: there are none.
        ImportError: the package for this kind of storage is not installed.
        OSError: the storage cannot be reached, or does not let us in.
        ValueError: the address is none that can be read, or would tell a secret.
    """
    file_system = _file_system(address)
    with _one_sentence(address):
        pinned, origin = _pinned(file_system, address)
        found = _found(file_system, pinned)
    if not found:
        raise FileNotFoundError(f"No file matches `{address}`. Give a glob of .parquet files, or the address of one.")
    if others := [path for path in found if not path.lower().endswith(".parquet")]:
        raise ValueError(f"`{address}` leads to `{others[0]}`: from elsewhere only .parquet files are read.")
    with _one_sentence(address), ThreadPoolExecutor(MAX_AT_ONCE) as threads:
        paths = tuple(threads.map(lambda path: _here(file_system, path), found))
    return RemoteShards(tuple(file_system.unstrip_protocol(path) for path in found), paths, origin)


def _file_system(address: str):
    import fsspec
    from fsspec.registry import known_implementations

    protocol, _, rest = address.partition("://")
    known = {*known_implementations, *fsspec.available_protocols()}
    if protocol not in known:
        raise ValueError(
            f"`{address}`: `{protocol}://` is no kind of storage that fsspec knows. Known are, among others, hf://, "
            "s3://, gs://, abfs://, hdfs://, https:// and file://."
        )
    if urlsplit(address).password or (protocol.startswith("http") and "?" in rest):
        raise ValueError(
            "The address of the table holds a password or a query, which the model's record of its training would "
            "tell. Give them by the environment or the configuration of the storage, and leave them out."
        )
    try:
        return fsspec.core.url_to_fs(address)[0]
    except ImportError as error:
        home = known_implementations[protocol]["class"]
        package = next((package for start, package in PACKAGES.items() if home.startswith(start)), home.split(".")[0])
        raise ImportError(
            f"`{address}`: {protocol}:// needs the package `{package}`, which is not installed: pip install {package}"
        ) from error
    except Exception as error:  # whatever the package of a storage comes up with, when it is set up or asked
        raise _failed(address, error) from error


def _pinned(file_system, address: str) -> tuple[str, dict[str, str]]:
    """(The address at one commit, what identifies it) on the Hub; elsewhere as it is."""
    from huggingface_hub import HfFileSystem

    if not isinstance(file_system, HfFileSystem) or address.startswith("hf://buckets/"):
        return address, {}
    from huggingface_hub import HfApi

    place = file_system.resolve_path(address)
    commit = HfApi().repo_info(place.repo_id, repo_type=place.repo_type, revision=place.revision).sha
    kind = {"dataset": "datasets/", "space": "spaces/"}.get(place.repo_type, "")
    pinned = f"hf://{kind}{place.repo_id}@{commit}/{place.path_in_repo}"
    return pinned, {"hub_id": place.repo_id, "revision": commit} if place.repo_type == "dataset" else {}


def _found(file_system, address: str) -> list[str]:
    path = file_system._strip_protocol(address)
    return sorted(file_system.glob(path)) if any(letter in path for letter in "*?[") else [path]


def _here(file_system, path: str) -> str:
    """Where a shard lies, fetched if it did not yet."""
    from datasets import config
    from filelock import FileLock

    known = repr(sorted(file_system.info(path).items(), key=str))
    key = hashlib.sha256(f"{file_system.unstrip_protocol(path)} {known}".encode()).hexdigest()
    target = Path(config.HF_DATASETS_CACHE) / "shards" / f"{key}.parquet"
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):  # of several processes one fetches
        if not target.exists():
            with tempfile.TemporaryDirectory(dir=target.parent) as folder:
                file_system.get_file(path, f"{folder}/shard")
                pq.read_metadata(f"{folder}/shard")
                os.replace(f"{folder}/shard", target)
    return str(target)


@contextmanager
def _one_sentence(address: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"`{address}` does not lead to a file ({_line(error)}). Check it.") from error
    except Exception as error:  # as above
        raise _failed(address, error) from error


def _failed(address: str, error: Exception) -> OSError:
    return OSError(
        f"`{address}` cannot be read now ({type(error).__name__}: {_line(error)}). Check the address, the network and "
        "the credentials in the environment."
    )


def _line(error: Exception) -> str:
    return next((line.strip(" .") for line in str(error).splitlines() if line.strip()), type(error).__name__)
