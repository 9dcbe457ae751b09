"""Records as a Parquet file, a row for each text; pyarrow comes with the extra ``parquet``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from divserve.errors import StartupError

__all__ = ["check", "convert"]

ROWS = 1024
"""Rows that are in memory at once."""


def check(out: Path) -> None:
    """Raises `StartupError` if `out` is to be Parquet and pyarrow is not installed."""
    if out.suffix != ".parquet":
        return
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise StartupError(
            f"--out {out}: Parquet needs pyarrow (pip install pyarrow); or give a name "
            "that ends in .jsonl"
        ) from None


def convert(records: Path, out: Path, scores: Sequence[str]) -> None:
    """Writes the records of a JSONL file.

    Args:
        records: as `Record` writes them.
        out: the file to write.
        scores: names of the columns of scores, float64; null where a text has none.
    """
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    columns = {
        "line": pa.int64(), "id": pa.string(), "index": pa.int32(), "tokens": pa.int32(),
        **dict.fromkeys(scores, pa.float64()),
        "excluded": pa.int32(), "trace": pa.string(), "error": pa.string(),
    }  # fmt: skip
    schema = pa.schema(list(columns.items()))
    with records.open("rb") as file, ParquetWriter(out, schema, compression="zstd") as writer:
        rows = (row for line in file for row in _rows(json.loads(line)))
        while batch := list(islice(rows, ROWS)):
            writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=schema))


def _rows(record: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    own = None if record["id"] is None else str(record["id"])
    known = {"line": record["line"], "id": own}
    if "error" in record:
        yield {**known, "error": record["error"]["message"]}
        return
    for text in record["data"]:
        trace = None if "trace" not in text else json.dumps(text["trace"])
        yield {
            **known, "index": text["index"], "tokens": text["tokens"], **text["scores"],
            "excluded": text.get("excluded"), "trace": trace,
        }  # fmt: skip
