"""Checkpoints on disk: each is a folder that is whole or not there, and a manifest says what belongs into it.

What is unusual: a checkpoint is believed only when every file has the size and the SHA-256 that its manifest states.
So one that a killed machine or a full disk has torn is recognised, and the one before it is taken. There are only
JSON and safetensors in it: nothing that could run code when it is read.
"""

import hashlib
import json
import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from cli.files import assembled, write_json

FORMAT = 1
MANIFEST, STATE, LOCK = "manifest.json", "state.json", ".lock"
PATTERN = "step-*"


@dataclass(frozen=True)
class Checkpoint:
    """One that is whole."""

    folder: Path
    manifest: dict

    @property
    def step(self) -> int:
        return self.manifest["step"]

    def state(self) -> dict:
        """What is no tensor."""
        return json.loads((self.folder / STATE).read_text(encoding="utf-8"))

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        """The tensors of one file, by name; empty where there is no such file."""
        file = f"{name}.safetensors"
        return load_file(self.folder / file) if file in self.manifest["files"] else {}


def read_checkpoint(folder: Path, *, is_known: bool = False) -> Checkpoint:
    """A checkpoint, every file of it compared with the manifest.

    Args:
        folder: Where it stands.
        is_known: Whether it has been compared before; then only the manifest is read.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: It is no checkpoint, or not whole; the message says which file.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no checkpoint `{folder}`")
    manifest = _manifest(folder)
    for name, expected in ({} if is_known else manifest["files"]).items():
        path = folder / name
        size = path.stat().st_size if path.is_file() else None
        if size is None:
            raise ValueError(f"`{folder}` is not whole: `{name}` is missing")
        if size != expected["size"]:
            raise ValueError(f"`{folder}` is not whole: `{name}` has {size:,} of {expected['size']:,} bytes")
        if _sha256(path) != expected["sha256"]:
            raise ValueError(f"`{folder}` is not whole: the content of `{name}` is not what was written")
    return Checkpoint(folder, manifest)


def _manifest(folder: Path) -> dict:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        is_ours = manifest["format"] == FORMAT and {STATE, "model.safetensors"} <= manifest["files"].keys()
        is_ours = is_ours and all(isinstance(manifest[key], int) for key in ("number", "step"))
    except FileNotFoundError:
        raise ValueError(f"`{folder}` is not whole: `{MANIFEST}` is missing") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        is_ours = False
    if not is_ours:
        raise ValueError(f"`{folder}` is not whole: `{MANIFEST}` cannot be read")
    return manifest


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class CheckpointFolder:
    """The checkpoints of a run, in a folder that one run at a time writes to.

    Args:
        folder: Where they stand, each as `step-00000120`.
        limit: So many are kept; what is too old goes when the new one stands, not before.
    """

    def __init__(self, folder: Path, limit: int = 3):
        self.folder, self.limit = folder, limit
        self._lock = FileLock(folder / LOCK)

    def acquire(self) -> None:
        """Take the folder for this run, and tidy up what a killed one left.

        Raises:
            OSError: Another run has it, or it cannot be written to.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(blocking=False)
        except Timeout:
            raise OSError(
                f"another run writes its checkpoints to `{self.folder}`: wait for its end, or name another "
                "--output_dir"
            ) from None
        except OSError as error:
            raise OSError(f"checkpoints cannot be written to `{self.folder}`: {error}") from error
        for path in self.folder.glob(f".{PATTERN}.partial-*"):
            shutil.rmtree(path)
        for path in self.folder.glob(f".{PATTERN}.replaced-*"):  # killed between the two moves of a replacement
            whole = path.with_name(path.name[1:].partition(".")[0])
            shutil.rmtree(path) if whole.exists() else os.replace(path, whole)

    def release(self) -> None:
        """Give the folder back, and remove it when nothing was written to it."""
        if self._lock.is_locked:
            self._lock.release()
            if not {path.name for path in self.folder.iterdir()} - {LOCK}:
                shutil.rmtree(self.folder)

    def folders(self) -> list[Path]:
        """Every checkpoint, whole or not, in the order in which they were written; without a manifest as the last."""
        return sorted(self.folder.glob(PATTERN), key=lambda path: (self._fact(path, "number", math.inf), path.name))

    def newest(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest that is whole, and sentences about newer ones that are not."""
        problems = []
        for folder in reversed(self.folders()):
            try:
                return read_checkpoint(folder), problems
            except ValueError as error:
                problems.append(str(error))
        return None, problems

    def save(self, step: int, run_id: str, tensors: dict[str, dict[str, torch.Tensor] | Path], state: dict) -> Path:
        """Write a checkpoint beside, move it into place, and only then remove what is too old.

        Args:
            step: Optimiser steps so far; gives the name.
            run_id: Of the run; checkpoints of other runs go when the first one of this run stands.
            tensors: name of a file -> name -> tensor, or a file that holds them and will not change.
            state: What is no tensor, fit for JSON.

        Raises:
            OSError: It cannot be written; those before it are as they were.
        """
        folder = self.folder / f"step-{step:08}"
        number = 1 + max((self._fact(path, "number", 0) for path in self.folders()), default=0)
        try:
            with assembled(folder) as partial:
                for name, content in tensors.items():
                    put = linked if isinstance(content, Path) else save_file
                    put(content, partial / f"{name}.safetensors")
                write_json(partial / STATE, state)
                files = {
                    path.name: {"size": path.stat().st_size, "sha256": _sha256(path)}
                    for path in sorted(partial.iterdir())
                }
                facts = {"format": FORMAT, "number": number, "step": step, "run_id": run_id, "files": files}
                write_json(partial / MANIFEST, facts)
                _flush(*partial.iterdir(), partial)
            _flush(self.folder)
        except (OSError, SafetensorError) as error:
            raise OSError(self._unwritten(folder, error)) from error
        self._remove_old(run_id)
        return folder

    def _unwritten(self, folder: Path, error: Exception) -> str:
        newest, _ = self.newest()
        rest = (
            "there is none before it"
            if newest is None
            else f"the one before it, `{newest.folder.name}`, is whole: make room, then go on from it with "
            "--resume_from_checkpoint latest"
        )
        return f"the checkpoint `{folder}` cannot be written ({error}); {rest}"

    def _remove_old(self, run_id: str) -> None:
        kept = [path for path in self.folders() if self._fact(path, "run_id", None) == run_id][-self.limit :]
        for path in self.folders():
            if path not in kept:
                (path / MANIFEST).unlink(missing_ok=True)  # first: nobody shall read what is half gone
                shutil.rmtree(path)

    def _fact(self, folder: Path, name: str, default):
        try:
            return _manifest(folder).get(name, default)
        except ValueError:
            return default


def linked(file: Path, place: Path) -> None:
    """Have a file at a second place, without a second copy of its content where the disks allow it."""
    try:
        os.link(file, place)
    except OSError:
        shutil.copyfile(file, place)


def _flush(*paths: Path) -> None:
    """Have files and folders on the disk itself, where a power cut leaves them."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
