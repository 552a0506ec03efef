"""Sampling with vLLM, in processes of a separate environment because it needs a different torch.

Token ids are exchanged as Parquet files, one shard at a time; `vllm_worker.py` runs in vLLM's environment. Every call
starts new processes on the given checkpoint, so each iteration uses its own weights. Finished shards are kept, and a
killed run continues with the rest.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import os
import signal
import subprocess
import time
from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from spin_utils.files import artifacts, runtime
from spin_utils.files.paths import KitError, relative
from spin_utils.files.runtime import progress
from spin_utils.model import base
from spin_utils.model.vllm_worker import SCHEMA
from spin_utils.settings.machine import VllmSettings
from spin_utils.settings.run import GenerationSettings

log = logging.getLogger(__name__)

WORKER = Path(__file__).with_name("vllm_worker.py")
_POLL_S = 0.1
_PATIENCE_S = 20.0  # to exit cleanly before being killed
_TAIL = 15  # lines of a failed process's output to show
_CHECKED_TOKENS = 4096  # per pass of the health check
Answer = tuple[list[int], str, float]
"""Token ids, finish reason and summed log-probability."""

_PROMPTS = pa.schema([("stream", pa.int64()), ("seed", pa.int64()), ("prompt_ids", pa.list_(pa.int32()))])
_REMEDY = "delete it and run the same command again"


@dataclass(frozen=True)
class Shard:
    """Consecutive prompts and their responses."""

    prompts: Path
    answers: Path
    """Exists when the shard is finished."""
    streams: range
    """Indices of the prompts among all."""


def check_environment(settings: VllmSettings) -> None:
    """Raise if the environment lacks vLLM or pyarrow.

    Raises:
        KitError: no such Python, or a package is missing there.
    """
    find = "import importlib.util as u; print(*(n for n in ('vllm', 'pyarrow') if u.find_spec(n) is None))"
    python = _python(settings)
    place = f"generation.vllm.python: {python}"
    try:
        found = subprocess.run([python, "-I", "-c", find], capture_output=True, text=True, check=True)
    except OSError as error:
        raise KitError(f"{place}: cannot be started ({error.strerror}); give the path of a Python") from None
    except subprocess.CalledProcessError as error:
        raise KitError(f"{place}: not a working Python ({' '.join(error.stderr.split())})") from None
    if missing := " ".join(found.stdout.split()):
        raise KitError(f"{place}: lacks {missing}; run `{python} -m pip install {missing}`")


def answer(
    model: Path,
    prompts: Sequence[Sequence[int]],
    *,
    eos_ids: Collection[int],
    settings: GenerationSettings,
    seed: int,
    work: Path,
    what: str,
) -> tuple[list[Answer], list[str]]:
    """Sample one response per prompt.

    A prompt's random numbers depend on the seed and its index, not on the processes or on what is decoded with it.
    Rounding does, so with a different number of GPUs the same distribution may give different samples.

    Args:
        model: folder of the weights.
        prompts: token ids, none empty.
        eos_ids: tokens that end a response.
        settings: with `backend` vllm.
        seed: of all random numbers.
        work: folder that keeps finished shards.
        what: a few words for the progress line.

    Returns:
        The responses in the order of the prompts, and the vLLM versions that produced them.

    Raises:
        KitError: a process failed, or its output is damaged. Finished shards are kept.
    """
    shards = write_prompts(prompts, settings.shard_rows, seed, work)
    missing = unfinished(shards, eos_ids, settings)
    if missing:
        job = {
            "engine": engine_arguments(model, settings, max(map(len, prompts))),
            "sampling": sampling_arguments(settings, eos_ids),
            "shards": [[str(shard.prompts), str(shard.answers)] for shard in missing],
        }
        artifacts.write_json(work / "job.json", job)
        devices = worker_devices(settings.vllm, len(missing))
        done = finished_rows(shards)
        with (
            progress(len(prompts), what, "prompts", done=done) as bar,
            contextlib.closing(_running(settings.vllm, devices, work)) as running,
        ):
            for _ in running:
                bar.advance(finished_rows(shards) - bar.done)
    answers = [row for shard in shards for row in read_answers(shard, eos_ids, settings)]
    return answers, versions(shards)


def engine_arguments(model: Path, settings: GenerationSettings, longest_prompt: int) -> dict[str, Any]:
    """Arguments of `vllm.LLM`.

    Args:
        model: folder of the weights.
        settings: with `backend` vllm.
        longest_prompt: in tokens.

    Raises:
        KitError: `max_model_len` has no room for the longest prompt and its answer.
    """
    needed = longest_prompt + settings.max_new_tokens
    length = settings.vllm.max_model_len or needed
    if length < needed:
        raise KitError(
            f"generation.vllm.max_model_len: {length}; the longest prompt and its answer take {longest_prompt} + "
            f"{settings.max_new_tokens} tokens; set it to at least {needed}, or to 0"
        )
    return {
        "model": str(model),
        "skip_tokenizer_init": True,
        "trust_remote_code": False,
        "load_format": "safetensors",
        "generation_config": "vllm",  # not the model's, which may set top_k and more end tokens
        "dtype": "bfloat16",  # like the kit's sampler
        "seed": 0,  # unused: every prompt has its own
        "logprobs_mode": "raw_logprobs",
        "max_model_len": length,
        "max_num_seqs": settings.batch_size,
        "tensor_parallel_size": settings.vllm.tensor_parallel_size,
        "gpu_memory_utilization": settings.vllm.gpu_memory_utilization,
        "enforce_eager": settings.vllm.enforce_eager,
    }


def sampling_arguments(settings: GenerationSettings, eos_ids: Collection[int]) -> dict[str, Any]:
    """Arguments of `vllm.SamplingParams`, the same for every prompt except its seed."""
    return {
        "temperature": settings.temperature,
        "top_k": settings.top_k,
        "top_p": settings.top_p,
        "max_tokens": settings.max_new_tokens,
        "stop_token_ids": sorted(eos_ids),
        "ignore_eos": True,  # only the ids above end a response
        "logprobs": 0,  # only the sampled token's
        "detokenize": False,
    }


def worker_devices(settings: VllmSettings, shards: int) -> list[str]:
    """CUDA_VISIBLE_DEVICES of each process. Their number follows from settings and GPUs, at most one per shard.

    Raises:
        KitError: more GPUs are requested than are visible.
    """
    devices, each = runtime.visible_gpus(), settings.tensor_parallel_size
    count = min(shards, settings.processes or max(1, len(devices) // each))
    if not devices:  # let vLLM report what it needs
        devices = [str(i) for i in range(count * each)]
    if count * each > len(devices):
        raise KitError(
            f"generation.vllm: {count} x {each} GPUs are requested but {len(devices)} are visible; lower "
            "generation.vllm.processes or generation.vllm.tensor_parallel_size"
        )
    return [",".join(devices[k * each : (k + 1) * each]) for k in range(count)]


def _running(settings: VllmSettings, devices: Sequence[str], work: Path) -> Generator[None]:
    """Start a process on each set of devices, yield regularly until all have finished, and leave none running."""
    environment = runtime.child_environment(headless=True)
    environment.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # one process fewer, and a repeatable schedule
    environment |= {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    workers: list[subprocess.Popen[bytes]] = []
    try:
        for k, own in enumerate(devices):
            with open(work / f"worker-{k}.log", "wb") as output:
                workers.append(
                    subprocess.Popen(
                        # -I: neither the kit's folder nor PYTHONPATH may shadow the other environment's packages.
                        [_python(settings), "-I", str(WORKER), str(work / "job.json"), str(k), str(len(devices))],
                        env=environment | {runtime.VISIBLE_GPUS: own},
                        stdin=subprocess.PIPE,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )
        while any(worker.poll() is None for worker in workers):
            _check_alive(workers, work)
            yield
            time.sleep(_POLL_S)
        _check_alive(workers, work)
        yield
    finally:
        _stop(workers)


def _check_alive(workers: Sequence[subprocess.Popen[bytes]], work: Path) -> None:
    for k, worker in enumerate(workers):
        if worker.poll():
            path = work / f"worker-{k}.log"
            told = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-_TAIL:]
            code = worker.returncode
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
            raise KitError(
                f"vLLM process {k} of {len(workers)} {how}; finished shards are kept, and the same command continues "
                f"from them. Its last lines ({relative(path)}):\n" + "\n".join(f"  {line}" for line in told)
            )


def _stop(workers: Sequence[subprocess.Popen[bytes]]) -> None:
    for worker in workers:
        if worker.poll() is None:
            os.killpg(worker.pid, signal.SIGTERM)
    for worker in workers:
        try:
            worker.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()
        assert worker.stdin is not None
        worker.stdin.close()


def _python(settings: VllmSettings) -> str:
    return str(Path(settings.python).expanduser())


def health(
    model: Path, prompts: Sequence[Sequence[int]], answers: Sequence[Answer], settings: VllmSettings
) -> dict[str, Any]:
    """Differences between vLLM's log-probabilities and the kit's, in nats per response token: is it the same policy?

    This is only a check. The opponent's log-probabilities always come from the kit, since a difference between two
    engines would look like a drift of the policy.

    Args:
        model: folder of the weights that were sampled from.
        prompts: token ids.
        answers: one per prompt.
        settings: how many rows to check, evenly spaced, and the limit above which to warn.

    Returns:
        JSON data: `rows` compared, `mean_difference`, `largest_difference` (absolute), and the `limit`.
    """
    from spin_utils.model.logprobs import score  # needs torch
    from spin_utils.model.packing import Group

    rows = np.unique(np.linspace(0, len(prompts) - 1, min(settings.checked_rows, len(prompts))).astype(int)).tolist()
    groups = [Group(list(prompts[i]), (answers[i][0],)) for i in rows]
    ours = score(base.load_for_inference(model), groups, micro_batch_tokens=_CHECKED_TOKENS)
    differences = np.array([(answers[i][2] - own) / len(answers[i][0]) for i, (own,) in zip(rows, ours, strict=True)])
    health = {
        "rows": len(rows),
        "mean_difference": float(differences.mean()),
        "largest_difference": float(np.abs(differences).max()),
        "limit": settings.largest_difference,
    }
    text = "log-probabilities, vLLM minus kit, nats per token of %(rows)d responses: mean %(mean_difference).4f, "
    log.info(text + "largest %(largest_difference).4f", health)
    if health["largest_difference"] > settings.largest_difference:
        log.warning(
            "the largest difference is above generation.vllm.largest_difference (%s): the responses may come from "
            "another model, template or precision than the one being trained; find out why before you trust this run",
            settings.largest_difference,
        )
    return health


def write_prompts(prompts: Sequence[Sequence[int]], rows: int, seed: int, work: Path) -> list[Shard]:
    """Write the prompts' token ids and seeds in shards.

    Args:
        prompts: token ids.
        rows: prompts per shard.
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
    """Seed of a prompt's random numbers: 63 bits of a hash, so that neighbouring seeds are unrelated.

    >>> prompt_seed(0, 1) != prompt_seed(1, 0)
    True
    """
    return int.from_bytes(hashlib.sha256(f"{seed} {stream}".encode()).digest()[:8], "big") >> 1


def unfinished(shards: Sequence[Shard], eos_ids: Collection[int], settings: GenerationSettings) -> list[Shard]:
    """The shards without responses. Damaged ones are deleted with a warning."""
    for shard in shards:
        if shard.answers.is_file():
            try:
                read_answers(shard, eos_ids, settings)
            except KitError as error:
                log.warning("%s; sampling it again", str(error).removesuffix(f"; {_REMEDY}"))
                shard.answers.unlink()
    return [shard for shard in shards if not shard.answers.is_file()]


def finished_rows(shards: Sequence[Shard]) -> int:
    """Number of prompts that have responses."""
    return sum(len(shard.streams) for shard in shards if shard.answers.is_file())


def versions(shards: Sequence[Shard]) -> list[str]:
    """The vLLM versions that produced the responses."""
    found = [(pq.read_schema(shard.answers).metadata or {}).get(b"vllm", b"unknown") for shard in shards]
    return sorted({version.decode() for version in found})


def read_answers(shard: Shard, eos_ids: Collection[int], settings: GenerationSettings) -> list[Answer]:
    """A finished shard's responses, each checked to be one that the kit's sampler could have produced.

    Raises:
        KitError: the file is missing or damaged, its rows belong to other prompts, or a response is impossible.
    """
    place = relative(shard.answers)
    try:
        table = pq.read_table(shard.answers)
    except FileNotFoundError:
        raise KitError(f"{place}: vLLM exited normally without writing it; run the same command again") from None
    except (pa.ArrowException, OSError) as error:
        raise KitError(f"{place}: not readable as Parquet ({' '.join(str(error).split())}); {_REMEDY}") from None
    if table.schema.names != SCHEMA.names:
        raise KitError(f"{place}: columns {table.schema.names}, expected {SCHEMA.names}; {_REMEDY}")
    if table["stream"].to_pylist() != list(shard.streams):
        raise KitError(f"{place}: its {table.num_rows} rows do not answer the {len(shard.streams)} prompts; {_REMEDY}")
    rows = table.to_pylist()
    for row in rows:
        if not _is_answer(row, eos_ids, settings.max_new_tokens):
            tokens = len(row["generated_ids"] or ())
            raise KitError(
                f"{place}, prompt {row['stream']}: {tokens} tokens with finish reason {row['finish_reason']!r} and "
                f"log-probability {row['logp']} are not a valid response; {_REMEDY}"
            )
    return [(row["generated_ids"], row["finish_reason"], row["logp"]) for row in rows]


def _is_answer(row: dict[str, Any], eos_ids: Collection[int], longest: int) -> bool:
    ids, logp = row["generated_ids"], row["logp"]
    if not ids or len(ids) > longest or logp is None or not math.isfinite(logp):
        return False
    ended = ids[-1] in eos_ids
    reason = "stop" if ended else "length"
    return row["finish_reason"] == reason and (ended or len(ids) == longest) and not set(ids[:-1]) & set(eos_ids)
