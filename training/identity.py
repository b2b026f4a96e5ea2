"""What makes two runs the same training: settings, rows and number of processes, as a checkpoint remembers them.

A flag counts unless it is named here as one that changes nothing of what is computed: a new flag is on the safe side.
"""

import hashlib
import importlib.metadata
import json
from collections.abc import Iterator

# Where things lie, what is said and kept on the way, and what is done with the model afterwards. The rows are compared
# by what is in them, so that a table may be moved.
FREE = {
    "allow_outside_paths", "auto_find_batch_size", "cache_dir", "cache_gib", "check_cells", "checkpointing_steps",
    "checkpoints_total_limit", "command",
    "dataloader_timeout", "hub_model_id", "hub_private_repo", "hub_token", "license", "logging_steps",
    "max_bad_steps", "output_dir", "overwrite_output_dir", "prefetch_factor", "push_to_hub",
    "report_to", "resume_from_checkpoint", "train_file", "validation_file", "with_baselines", "with_tracking",
}  # fmt: skip
ROWS = ("rows to train on", "rows held out")
SIZES = ("per_device_train_batch_size", "gradient_accumulation_steps")  # their product is the rows of a step
PACKAGES = ("torch", "transformers", "accelerate")


def settings_of(args, num_processes: int) -> dict:
    """Flag -> value, for those that count."""
    settings = {name: value for name, value in vars(args).items() if name not in FREE}
    if not settings.get("streaming"):
        # How many open the rows of a table changes nothing; whether others than the training itself do, does: their
        # start draws a random number.
        settings["num_workers"] = "some" if args.num_workers else 0
    settings["the number of processes"] = num_processes
    return json.loads(json.dumps(settings, default=str))


def set_batch_size(args, size: int) -> None:
    """Take this batch size; a step has as many rows as before."""
    rows = args.per_device_train_batch_size * args.gradient_accumulation_steps
    args.per_device_train_batch_size, args.gradient_accumulation_steps = size, rows // size


def take_batch_size(args, settings: dict) -> None:
    """Take the batch size that a run, whose settings these are, was found to fit with; not if its steps had others."""
    size, steps = (settings.get(name, 0) for name in SIZES)
    if size * steps == args.per_device_train_batch_size * args.gradient_accumulation_steps:
        set_batch_size(args, size)


def rows_of(*rows) -> dict:
    """What identifies the rows: which they are, and what is in them; of pictures and sounds their names or sizes."""
    return {name: {**some.record(str), **_content(some)} for name, some in zip(ROWS, rows, strict=True)}


def _content(rows) -> dict:
    if rows.is_streamed:  # at one commit of the Hub, which its record names
        return {}
    table, digest = rows.table, hashlib.sha256()
    digest.update(table.rows.tobytes() + table.presence.tobytes())
    for kind in sorted(table.columns):
        for values in _described(table.source.data.column(kind), table.rows):
            digest.update(repr(values).encode())
    return {"name": None, "sha256": digest.hexdigest()}  # by its content, not by its path


def _described(column, rows) -> Iterator[list]:
    """The cells of a column in pieces: text and numbers as they are, bytes by their number."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    if pa.types.is_struct(kind):
        for field in kind:
            yield from _described(pa.chunked_array([pc.struct_field(c, field.name) for c in column.chunks]), rows)
        return
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        column = pc.binary_length(column)
    elif pa.types.is_list(kind) and pa.types.is_floating(kind.value_type):  # a waveform
        column = pc.list_value_length(column)
    for chunk in column.take(rows).chunks:
        yield chunk.to_pylist()


def differences(then: dict, now: dict) -> list[str]:
    """Clauses that name each setting that is another one."""
    found = []
    for name in sorted(then.keys() | now.keys()):
        old, new = then.get(name), now.get(name)
        if old == new:
            continue
        if name in ROWS:
            counts = [(rows or {}).get("num_rows") for rows in (old, new)]
            found.append(f"the {name} are others ({counts[0]} then, {counts[1]} now)")
        else:
            name = name if " " in name else f"--{name}"
            found.append(f"{name} was {old} and is {new}")
    return found


def versions() -> dict[str, str]:
    """Of the libraries that decide the last bits."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def other_versions(then: dict[str, str]) -> str:
    """Those that were others then, for people; empty where none were."""
    return ", ".join(f"{name} {version}" for name, version in then.items() if versions().get(name) != version)
