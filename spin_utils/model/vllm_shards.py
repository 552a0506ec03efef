"""The Parquet files through which the kit and vLLM's processes speak: prompts out, answers back, a shard at a time."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from spin_utils.files.paths import relative
from spin_utils.model.vllm_worker import SCHEMA
from spin_utils.settings.run import GenerationSettings

log = logging.getLogger(__name__)

Answer = tuple[list[int], str, float]
"""Token ids, finish reason and summed log-probability."""

_PROMPTS = pa.schema([("stream", pa.int64()), ("seed", pa.int64()), ("prompt_ids", pa.list_(pa.int32()))])
_REMEDY = "delete it and run the same command again"


class VllmError(RuntimeError):
    """vLLM's environment, a process in it or what it wrote is not as it must be. The message has the remedy."""


@dataclass(frozen=True)
class Shard:
    """Some consecutive prompts and their answers."""

    prompts: Path
    answers: Path
    """There when the shard is finished."""
    streams: range
    """Places of the prompts among all."""


def write_prompts(prompts: Sequence[Sequence[int]], rows: int, seed: int, work: Path) -> list[Shard]:
    """Write the prompts' token ids and seeds.

    Args:
        prompts: token ids.
        rows: prompts in a shard.
        seed: of all random numbers.
        work: folder of the files.
    """
    work.mkdir(exist_ok=True)
    shards = []
    for start in range(0, len(prompts), rows):
        streams = range(start, min(start + rows, len(prompts)))
        shard = Shard(work / f"{start:08d}.prompts.parquet", work / f"{start:08d}.answers.parquet", streams)
        table = [{"stream": i, "seed": prompt_seed(seed, i), "prompt_ids": list(prompts[i])} for i in streams]
        pq.write_table(pa.Table.from_pylist(table, schema=_PROMPTS), shard.prompts)
        shards.append(shard)
    return shards


def prompt_seed(seed: int, stream: int) -> int:
    """Seed of a prompt's random numbers: 63 bits of a hash, so that neighbours have nothing in common.

    >>> prompt_seed(0, 1) != prompt_seed(1, 0)
    True
    """
    return int.from_bytes(hashlib.sha256(f"{seed} {stream}".encode()).digest()[:8], "big") >> 1


def unfinished(shards: Sequence[Shard], eos_ids: Collection[int], settings: GenerationSettings) -> list[Shard]:
    """The shards without answers. Damaged answers are removed, with a warning."""
    for shard in shards:
        if shard.answers.is_file():
            try:
                read_answers(shard, eos_ids, settings)
            except VllmError as error:
                log.warning("%s; drawn again", str(error).removesuffix(f"; {_REMEDY}"))
                shard.answers.unlink()
    return [shard for shard in shards if not shard.answers.is_file()]


def finished_rows(shards: Sequence[Shard]) -> int:
    """How many prompts have answers."""
    return sum(len(shard.streams) for shard in shards if shard.answers.is_file())


def versions(shards: Sequence[Shard]) -> list[str]:
    """The versions of vLLM that drew the answers."""
    found = [(pq.read_schema(shard.answers).metadata or {}).get(b"vllm", b"unknown") for shard in shards]
    return sorted({version.decode() for version in found})


def read_answers(shard: Shard, eos_ids: Collection[int], settings: GenerationSettings) -> list[Answer]:
    """A finished shard's answers, each proved to be one that the kit's sampler could have given.

    Raises:
        VllmError: a missing or damaged file, rows of other prompts, or an answer that is none.
    """
    place = relative(shard.answers)
    try:
        table = pq.read_table(shard.answers)
    except FileNotFoundError:
        raise VllmError(f"{place}: vLLM ended well and did not write it; run the same command again") from None
    except (pa.ArrowException, OSError) as error:
        raise VllmError(f"{place}: not readable as Parquet ({' '.join(str(error).split())}); {_REMEDY}") from None
    if table.schema.names != SCHEMA.names:
        raise VllmError(f"{place}: columns {table.schema.names}, expected {SCHEMA.names}; {_REMEDY}")
    if table["stream"].to_pylist() != list(shard.streams):
        raise VllmError(f"{place}: its {table.num_rows} rows do not answer the {len(shard.streams)} prompts; {_REMEDY}")
    rows = table.to_pylist()
    for row in rows:
        if not _is_answer(row, eos_ids, settings.max_new_tokens):
            tokens = len(row["generated_ids"] or ())
            raise VllmError(
                f"{place}, prompt {row['stream']}: {tokens} tokens with finish reason {row['finish_reason']!r} and "
                f"log-probability {row['logp']} are no answer; {_REMEDY}"
            )
    return [(row["generated_ids"], row["finish_reason"], row["logp"]) for row in rows]


def _is_answer(row: dict[str, Any], eos_ids: Collection[int], longest: int) -> bool:
    ids, logp = row["generated_ids"], row["logp"]
    if not ids or len(ids) > longest or logp is None or not math.isfinite(logp):
        return False
    ended = ids[-1] in eos_ids
    reason = "stop" if ended else "length"
    return row["finish_reason"] == reason and (ended or len(ids) == longest) and not set(ids[:-1]) & set(eos_ids)
