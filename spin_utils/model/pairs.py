"""Pairs (x, y, y') as token ids on disk, read back without loading them into memory.

A file is Arrow IPC (Feather), so `pandas.read_feather` opens it; the kit maps it into memory, so the cost of
a pair does not depend on how many there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import pyarrow as pa

from spin_utils.files import processes
from spin_utils.model.packing import Group

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("iteration", pa.int32()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("real_ids", pa.list_(pa.int32())),
        ("generated_ids", pa.list_(pa.int32())),
        ("finish_reason", pa.string()),
        ("generated_logp", pa.float32()),
    ]
)


class PairsError(ValueError):
    """A file of pairs is damaged or does not have the columns of `SCHEMA`."""


def write(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write rows of `SCHEMA` as one Arrow IPC file, uncompressed so that it can be mapped.

    Of several processes the first one writes.
    """
    if processes.rank():
        return path
    table = pa.Table.from_pylist(list(rows), schema=SCHEMA)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
        writer.write_table(table)
    return path


class Pairs(Sequence[Group]):
    """A read-only sequence of groups over one or several files, of all rows or the first ones.

    Attributes:
        table: the rows, memory-mapped.
        end_truncated: the id appended to length-cut generated answers, or None to leave them without an end.
    """

    def __init__(self, paths: Sequence[Path], *, end_truncated: int | None = None, rows: int | None = None) -> None:
        self.table = pa.concat_tables([_open(path) for path in paths]).slice(0, rows)
        self.end_truncated = end_truncated

    def __len__(self) -> int:
        return self.table.num_rows

    def name(self, index: int) -> str:
        """How messages name a pair: the id of its row and the iteration that generated it."""
        row = self.table.select(["id", "iteration"]).slice(index, 1).to_pylist()[0]
        return f"pair {row['id']} of iteration {row['iteration']}"

    @overload
    def __getitem__(self, index: int) -> Group: ...
    @overload
    def __getitem__(self, index: slice) -> list[Group]: ...
    def __getitem__(self, index: int | slice) -> Group | list[Group]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)  # also what ends a for loop over a sequence
        row = self.table.slice(index % len(self), 1).to_pylist()[0]
        generated = row["generated_ids"]
        if row["finish_reason"] == "length" and self.end_truncated is not None:
            generated = [*generated, self.end_truncated]
        return Group(row["prompt_ids"], (row["real_ids"], generated))


def _open(path: Path) -> pa.Table:
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except (pa.ArrowInvalid, OSError) as error:
        raise PairsError(
            f"{path}: not a readable file of pairs ({error}); delete its folder and generate again"
        ) from None
    if table.schema.names != SCHEMA.names:
        raise PairsError(f"{path}: columns {table.schema.names}, expected {SCHEMA.names}")
    return table
