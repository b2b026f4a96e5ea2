"""The Parquet reader of `datasets`, for types that it does not know; imported late, since it is slow."""

import pyarrow as pa
from datasets.packaged_modules.parquet.parquet import Parquet

from data.arrow_types import plain_table


class PlainParquet(Parquet):
    """Reads Parquet, and casts its columns to plain types."""

    def _cast_table(self, pa_table: pa.Table) -> pa.Table:
        return super()._cast_table(plain_table(pa_table))
