"""Arrow types of any writer → the few that the rest of the software knows; columns are cast once, when they are read.

Polars, DuckDB and other writers built on arrow-rs store text as `string_view`, bytes as `binary_view`, and repeated
values as dictionaries or runs, for which Arrow lacks most functions.
"""

from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as types

if TYPE_CHECKING:
    from datasets import Dataset, Features, IterableDataset


def plain_type(kind: pa.DataType) -> pa.DataType:
    """Return the type that values of a type are read as, at any depth of lists and structs."""
    if types.is_dictionary(kind) or types.is_run_end_encoded(kind):
        return plain_type(kind.value_type)
    if isinstance(kind, pa.BaseExtensionType):
        return plain_type(kind.storage_type)
    if types.is_string_view(kind):
        return pa.large_string()
    if types.is_binary_view(kind) or types.is_fixed_size_binary(kind):
        return pa.large_binary()
    if types.is_decimal(kind):
        return pa.int64() if kind.scale == 0 and kind.precision <= 18 else pa.float64()
    if types.is_float16(kind):
        return pa.float32()
    return _plain_nested(kind)


def _plain_nested(kind: pa.DataType) -> pa.DataType:
    if types.is_fixed_size_list(kind):
        return pa.list_(plain_field(kind.value_field), kind.list_size)
    if types.is_list(kind) or types.is_list_view(kind):
        return pa.list_(plain_field(kind.value_field))
    if types.is_large_list(kind) or types.is_large_list_view(kind):
        return pa.large_list(plain_field(kind.value_field))
    if types.is_struct(kind):
        return pa.struct([plain_field(field) for field in kind])
    return kind


def plain_field(field: pa.Field) -> pa.Field:
    return field.with_type(plain_type(field.type))


def plain_table(table: pa.Table) -> pa.Table:
    """Return a table with its columns cast to plain types; columns that have one already are not copied."""
    for index, field in enumerate(table.schema):
        plain = plain_field(field)
        if plain.type != field.type:
            table = table.set_column(index, plain, _cast(table.column(index), plain))
    return table


def _cast(column: pa.ChunkedArray, field: pa.Field) -> pa.ChunkedArray:
    if types.is_run_end_encoded(column.type):
        column = pa.chunked_array([pc.run_end_decode(chunk) for chunk in column.chunks], type=column.type.value_type)
    if types.is_list_view(column.type) or types.is_large_list_view(column.type):
        column = pa.chunked_array(
            [_as_list(chunk) for chunk in column.chunks], type=pa.large_list(column.type.value_type)
        )
    try:
        return column.cast(field.type)
    except pa.ArrowException as error:
        raise ValueError(
            f"the column `{field.name}` holds {column.type}, which cannot be read as {field.type} ({error}). Write it "
            "as plain text, numbers, lists or bytes."
        ) from None


def _as_list(views: pa.Array) -> pa.LargeListArray:
    """Return list views as lists; Arrow's own cast (26.0) loses the items of the last view."""
    lengths = pc.fill_null(pc.list_value_length(views), 0).to_numpy(zero_copy_only=False)
    offsets = pa.array([0, *lengths.cumsum().tolist()], pa.int64())
    return pa.LargeListArray.from_arrays(offsets, views.flatten(), mask=views.is_null())


def plain_features(schema: pa.Schema, columns: list[str]) -> "Features":
    """Return the features of `columns`, as declared for label names, as stored (in plain types) for everything else.

    An `Audio()` feature would ask for torchcodec at the first row.
    """
    from datasets import ClassLabel, Features

    chosen = pa.schema([schema.field(column) for column in columns], metadata=schema.metadata)
    stored = Features.from_arrow_schema(pa.schema([plain_field(field) for field in chosen]))
    declared = Features.from_arrow_schema(chosen) if b"huggingface" in (schema.metadata or {}) else {}
    for column, feature in declared.items():
        if column in stored and isinstance(getattr(feature, "feature", feature), ClassLabel):
            stored[column] = feature
    return stored


def as_dataset(table: pa.Table) -> "Dataset":
    """Return an Arrow table as a data set with plain types and the label names that it declares."""
    from datasets import Dataset, DatasetInfo

    features = plain_features(table.schema, table.column_names)
    return Dataset(plain_table(table).replace_schema_metadata(None), info=DatasetInfo(features=features))


def plain_dataset(dataset: "Dataset | IterableDataset") -> "Dataset | IterableDataset":
    """Return a data set with plain types.

    What has to be cast is written to the cache of `datasets` once; of a stream it is cast as it comes, before its rows
    are shuffled, for which Arrow knows no views.
    """
    from datasets import Features

    if dataset.features is None:
        return dataset
    schema = dataset.features.arrow_schema
    changed = [field.name for field in schema if plain_type(field.type) != field.type]
    if not changed:
        return dataset
    features = Features({**dataset.features, **plain_features(schema, changed)})
    return dataset.with_format("arrow").map(plain_table, batched=True, features=features).with_format(None)
