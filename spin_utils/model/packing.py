"""Groups of one prompt and several responses, laid end to end without padding.

A group is packed as `[prompt | response 1 | ... | response k]`: the prompt is stored and computed once, and the linear
layers see no padding at all. Only attention needs to know where the groups are, from a `Layout`.

Shape suffixes: T packed tokens, R response tokens, B groups of one tile, S padded group length.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import torch
from torch import Tensor

from spin_utils.files import processes
from spin_utils.files.paths import KitError

TILE_SLACK = 1.25
"""A tile is closed when its longest group is this much longer than its shortest one."""

LANES = 32
"""Lengths inside attention are multiples of this: softmax on a CPU is slow at the ragged end of a row."""

LONG_ROW = 256
"""Tokens of a prompt with a response from which attention's forward pass is faster in rows, also on a CPU."""

GPU_ELEMENTS = 2**25
"""Elements per chunk on a GPU (128 MB in float32), where more calls would cost more than the memory."""
PAIRS_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("iteration", pa.int32()),
        ("family", pa.string()),
        ("prompt", pa.string()),
        ("real", pa.string()),
        ("generated", pa.string()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("real_ids", pa.list_(pa.int32())),
        ("generated_ids", pa.list_(pa.int32())),
        ("finish_reason", pa.string()),
        ("generated_logp", pa.float32()),
    ]
)
"""Columns of a file of pairs (x, y, y'): token ids as sampled, and the same as text."""


class PairsError(KitError):
    """Pairs cannot be packed, or their file cannot be read."""


class Group(NamedTuple):
    """One prompt and its responses: one for SFT, (real, generated) for SPIN, any number for choices."""

    prompt_ids: Sequence[int]
    response_ids: tuple[Sequence[int], ...]

    @property
    def tokens(self) -> int:
        """Packed length: the prompt once and every response."""
        return len(self.prompt_ids) + sum(map(len, self.response_ids))

    @property
    def longest_row(self) -> int:
        """Length of the prompt with its longest response, which is the highest position plus one."""
        return len(self.prompt_ids) + max(map(len, self.response_ids), default=0)

    @property
    def positions(self) -> list[int]:
        """Position of each token in its own row; every response starts right after the prompt."""
        prompt = len(self.prompt_ids)
        return [*range(prompt), *(prompt + i for response in self.response_ids for i in range(len(response)))]

    @property
    def in_rows(self) -> bool:
        """Whether attention computes it in rows: they are long, and have little more area than the group."""
        area = len(self.response_ids) * self.longest_row**2
        return self.longest_row >= LONG_ROW and area <= 1.25 * self.tokens**2


@dataclass
class Tile:
    """Neighbouring groups of similar length, as a rectangle of B groups by S positions for attention."""

    start: int
    """First packed token of the tile."""
    stop: int
    """One past its last packed token."""
    segments: Tensor
    """Shape (B, S): 0 for prompt tokens, i for tokens of response i, -1 for padding."""
    positions: Tensor
    """Shape (B, S): position of each token in its own row of prompt and response; 0 for padding."""
    rows_layout: Layout | None
    """That of the tile's one group, if attention computes it in rows."""
    _bias: dict[tuple[torch.dtype, int | None], Tensor] = field(default_factory=dict, repr=False)
    _rows: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    def rows(self, heads: int) -> tuple[Tensor, Tensor]:
        """Indices from (token, head) rows to (group, head, position) order, and back, for `heads` heads per token.

        The first has shape (B heads S) and is arbitrary at padding, which the bias hides; the other has (T heads).
        Built once per batch and shared by all layers.
        """
        if heads not in self._rows:
            (batch, length), device = self.segments.shape, self.segments.device
            slots = (self.segments.flatten() >= 0).nonzero()[:, 0]
            tokens = torch.full((batch * length,), self.start, device=device)
            tokens[slots] = torch.arange(self.start, self.stop, device=device)
            head = torch.arange(heads, device=device)
            there = tokens.view(batch, 1, length) * heads + head[:, None]
            group, place = slots // length, slots % length
            back = (group[:, None] * heads + head) * length + place[:, None]
            self._rows[heads] = (there.flatten(), back.flatten())
        return self._rows[heads]

    def bias(self, dtype: torch.dtype, window: int | None = None) -> Tensor:
        """Attention bias, shape (B, S, S): 0 where a query (second-last index) may see a key (last index), else -inf.

        A token sees the prompt and its own response, up to itself, or with a window the last `window` tokens of those.
        Padding sees padding, so that no row is empty. Built once per batch and shared by all layers.
        """
        if (dtype, window) not in self._bias:
            query, key = self.segments[:, :, None], self.segments[:, None, :]
            places = torch.arange(self.segments.shape[1], device=self.segments.device)
            allowed = ((key == query) | ((key == 0) & (query > 0))) & (places[None, :] <= places[:, None])
            if window is not None:
                allowed &= self.positions[:, :, None] - self.positions[:, None, :] < window
            bias = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
            self._bias[dtype, window] = bias.masked_fill_(~allowed, float("-inf"))
        return self._bias[dtype, window]


@dataclass
class Layout:
    """Where the groups of a packed batch are: everything attention needs besides queries, keys and values."""

    groups: Sequence[Group]
    device: torch.device | str
    memory: dict[str, Any] = field(default_factory=dict, repr=False)
    """Values that every layer derives from the batch, computed once."""

    @cached_property
    def longest_row(self) -> int:
        """Tokens of the longest prompt with one response."""
        return max(group.longest_row for group in self.groups)

    @cached_property
    def tiles(self) -> list[Tile]:
        """All groups in tiles; attention in rows needs none."""
        return list(_tiles(self.groups, self.device))


@dataclass
class PackedBatch:
    """Groups packed into one sequence, with the positions that predict response tokens."""

    input_ids: Tensor
    """Shape (1, T)."""
    position_ids: Tensor
    """Shape (1, T): `Group.positions`."""
    sources: Tensor
    """Shape (R,): packed position whose hidden state predicts each response token. The first tokens of all responses in
    a group are predicted from the same position, the end of the prompt."""
    targets: Tensor
    """Shape (R,): the response tokens."""
    sizes: Tensor
    """Shape (responses,): tokens of each response."""
    layout: Layout

    def sums(self, values_R: Tensor) -> Tensor:
        """Sum over the tokens of each response, shape (responses,). Deterministic to the byte, on a GPU too."""
        return torch.segment_reduce(values_R, "sum", lengths=self.sizes, unsafe=True)


def pack(groups: Sequence[Group], device: torch.device | str = "cpu") -> PackedBatch:
    """Lay groups end to end, in their order, on a device.

    Raises:
        PairsError: no groups, or an empty prompt or response.

    Example:
        >>> batch = pack([Group([5, 6], ([7, 8], [9]))])
        >>> batch.input_ids.tolist(), batch.position_ids.tolist()
        ([[5, 6, 7, 8, 9]], [[0, 1, 2, 3, 2]])
        >>> batch.sources.tolist(), batch.targets.tolist(), batch.sizes.tolist()
        ([1, 2, 1], [7, 8, 9], [2, 1])
    """
    check_groups(groups)
    ids: list[int] = []
    positions: list[int] = []
    sources: list[int] = []
    targets: list[int] = []
    sizes: list[int] = []
    for group in groups:
        last = len(ids) + len(group.prompt_ids) - 1
        ids += group.prompt_ids
        positions += group.positions
        for response in group.response_ids:
            sources.append(last)
            sources += range(len(ids), len(ids) + len(response) - 1)
            targets += response
            sizes.append(len(response))
            ids += response
    put = partial(torch.tensor, device=device)
    return PackedBatch(put([ids]), put([positions]), put(sources), put(targets), put(sizes), Layout(groups, device))


def check_groups(groups: Sequence[Group], responses: int = 0) -> int:
    """The longest row of the groups in tokens.

    Raises:
        PairsError: no groups, or an empty prompt or response, or another number of `responses` if that is given; names
            the first group.
    """
    if not groups:
        raise PairsError("nothing to pack: no groups were given")
    longest_row = 0
    for number, group in enumerate(groups):
        if not len(group.prompt_ids):
            raise PairsError(f"group {number}: empty prompt; give it at least one token, for example the start token")
        if not group.response_ids or not all(map(len, group.response_ids)):
            raise PairsError(f"group {number}: empty response; leave it out, or end it with the end token")
        if responses and len(group.response_ids) != responses:
            raise PairsError(
                f"group {number}: {len(group.response_ids)} responses; expected {responses}, as many as opponent_logps "
                "has, or 1 without them"
            )
        longest_row = max(longest_row, group.longest_row)
    return longest_row


def micro_batches(tokens: Sequence[int], budget: int) -> list[list[int]]:
    """Split groups into micro-batches of similar length and about equal size, longest first.

    Args:
        tokens: packed length of each group.
        budget: most tokens in one micro-batch; a longer group gets its own.

    Returns:
        Indices into `tokens`; every index occurs exactly once.

    Example:
        >>> micro_batches([3, 9, 4, 2], budget=9)
        [[1], [2, 0, 3]]
    """
    order = sorted(range(len(tokens)), key=lambda i: (-tokens[i], i))
    total = sum(tokens)
    share = total / max(1, -(-total // budget))
    batches: list[list[int]] = []
    filled = before = 0
    for index in order:
        begins_next_share = before >= share * len(batches)
        if not batches or filled + tokens[index] > budget or begins_next_share:
            batches.append([])
            filled = 0
        batches[-1].append(index)
        filled += tokens[index]
        before += tokens[index]
    return batches


def _tiles(groups: Sequence[Group], device: torch.device | str) -> Iterator[Tile]:
    """Split the groups into runs of similar length: `TILE_SLACK` limits the padding inside attention.

    A group in rows is a tile of its own, since the rounding of the fused kernel depends on the length of the rectangle.
    """
    first = start = 0
    while first < len(groups):
        shortest = longest = groups[first].tokens
        last = first + 1
        while last < len(groups):
            low, high = min(shortest, groups[last].tokens), max(longest, groups[last].tokens)
            if high > TILE_SLACK * low or groups[first].in_rows or groups[last].in_rows:
                break
            shortest, longest, last = low, high, last + 1
        own, length = groups[first:last], -(-longest // LANES) * LANES
        segments, positions = torch.full((len(own), length), -1), torch.zeros(len(own), length, dtype=torch.long)
        for row, group in enumerate(own):
            sizes = torch.tensor([len(group.prompt_ids), *map(len, group.response_ids)])
            segments[row, : group.tokens] = torch.arange(len(sizes)).repeat_interleave(sizes)
            positions[row, : group.tokens] = torch.tensor(group.positions)
        stop = start + sum(group.tokens for group in own)
        rows_layout = Layout(own, device) if own[0].in_rows else None
        yield Tile(start, stop, segments.to(device), positions.to(device), rows_layout)
        first, start = last, stop


def rows_at_once(elements: int, columns: int, device: torch.device) -> int:
    """Rows of a matrix per chunk, at least one; on a CPU a chunk has that many elements, on a GPU many more."""
    return max(1, (elements if device.type == "cpu" else GPU_ELEMENTS) // columns)


def common(real: Sequence[int], generated: Sequence[int]) -> int:
    """Length of the common prefix of two responses, in tokens.

    >>> common([1, 2, 3], [1, 2, 4, 3]), common([1, 2], [1, 2])
    (2, 2)
    """
    differs = (place for place, (a, b) in enumerate(zip(real, generated, strict=False)) if a != b)
    return next(differs, min(len(real), len(generated)))


def write_pairs(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write rows of `PAIRS_SCHEMA` as one Arrow IPC file, uncompressed so that it can be memory-mapped.

    With several processes, only the first one writes.
    """
    if processes.rank():
        return path
    table = pa.Table.from_pylist(list(rows), schema=PAIRS_SCHEMA)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, PAIRS_SCHEMA) as writer:
        writer.write_table(table)
    return path


class Pairs(Sequence[Group]):
    """A read-only sequence of groups (real, generated, ...) from one or several files, all rows or the first ones.

    Attributes:
        table: the rows, memory-mapped.
        end_truncated: the id appended to generated responses cut at the length limit; None: nothing is appended.
        answers: generated responses of a group, in rows next to each other.
        first: a file whose response to the same prompt is the last one of each group (T-SPIN); None: there is none.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        end_truncated: int | None = None,
        rows: int | None = None,
        answers: int = 1,
        first: Path | None = None,
    ) -> None:
        self.table = pa.concat_tables([_open(path) for path in paths]).slice(0, rows)
        self.end_truncated, self.answers = end_truncated, answers
        self.first = None if first is None else _open(first)
        ids = [] if self.first is None else self.first["id"].to_pylist()
        self._place = {name: place for place, name in enumerate(ids)}

    def __len__(self) -> int:
        return self.table.num_rows // self.answers

    def name(self, index: int) -> str:
        """A pair's name in messages: the id of its row and the iteration that generated it."""
        row = self.table.select(["id", "iteration"]).slice(index * self.answers, 1).to_pylist()[0]
        return f"pair {row['id']} of iteration {row['iteration']}"

    def __getitem__(self, index: int) -> Group:  # type: ignore[override]  # nobody takes a slice
        start = range(0, self.table.num_rows, self.answers)[index]
        rows = self.table.slice(start, self.answers).to_pylist()
        row = rows[0]
        if self.first is not None:
            rows += self.first.slice(self._place[row["id"]], 1).to_pylist()
        return Group(row["prompt_ids"], (row["real_ids"], *map(self._generated, rows)))

    def _generated(self, row: Mapping[str, Any]) -> list[int]:
        if row["finish_reason"] == "length" and self.end_truncated is not None:
            return [*row["generated_ids"], self.end_truncated]
        return row["generated_ids"]


def _open(path: Path) -> pa.Table:
    try:
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except (pa.ArrowInvalid, OSError) as error:
        raise PairsError(
            f"{path}: not a readable file of pairs ({error}); delete its folder and generate again"
        ) from None
