"""Sampling with vLLM, in processes of a separate environment because it needs a different torch.

`vllm_worker.py` runs there. Every call starts new processes on the given checkpoint, so each iteration uses its own
weights. See docs/clusters.md.
"""

from __future__ import annotations

import hashlib
import json
import logging
import signal
import subprocess
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spin_utils.files import runtime
from spin_utils.files.paths import KitError, WorkError, relative
from spin_utils.files.runtime import progress
from spin_utils.model import base
from spin_utils.settings.machine import VllmSettings
from spin_utils.settings.run import GenerationSettings

if TYPE_CHECKING:
    from spin_utils.model.sampling import Sample

log = logging.getLogger(__name__)

WORKER = Path(__file__).with_name("vllm_worker.py")
_POLL_S = 0.1
_TAIL = 15  # lines of a failed process's output to show
_CHECKED_ROWS, _CHECKED_TOKENS = 64, 4096  # responses of the health check, and tokens per pass


def check_environment(settings: VllmSettings) -> None:
    """Raise a `KitError` if there is no such Python or it has no vLLM."""
    python = str(Path(settings.python).expanduser())
    place = f"generation.vllm.python: {python}"
    find = "import importlib.util as u, sys; sys.exit(u.find_spec('vllm') is None)"
    try:
        lacking = subprocess.run([python, "-I", "-c", find]).returncode
    except OSError as error:
        raise KitError(f"{place}: cannot be started ({error.strerror}); give the path of a Python") from None
    if lacking:
        raise KitError(f"{place}: lacks vllm; run `{python} -m pip install vllm`")


def answer(
    model: Path,
    prompts: Sequence[Sequence[int]],
    *,
    eos_ids: Collection[int],
    settings: GenerationSettings,
    seed: int,
    work: Path,
    what: str,
) -> tuple[list[Sample], list[str]]:
    """Sample one response per prompt, as `sampling.sample`. Its random numbers depend on the seed and its index alone.

    Args:
        model: folder of the weights.
        work: folder that keeps finished shards.
        what: a few words for the progress line.

    Returns:
        The responses in the order of the prompts, and the vLLM versions that produced them.

    Raises:
        WorkError: a process failed. Finished shards are kept.
    """
    from spin_utils.model.sampling import Sample  # needs torch

    work.mkdir(exist_ok=True)
    size = settings.shard_rows
    shards = {work / f"{i:08d}.answers.json": range(len(prompts))[i : i + size] for i in range(0, len(prompts), size)}

    def done() -> int:
        return sum(len(rows) for path, rows in shards.items() if path.is_file())

    missing = [
        [str(path), [{"seed": prompt_seed(seed, i), "prompt_ids": list(prompts[i])} for i in rows]]
        for path, rows in shards.items()
        if not path.is_file()
    ]
    if missing:
        job = {
            "engine": engine_arguments(model, settings, max(map(len, prompts))),
            "sampling": sampling_arguments(settings, eos_ids),
            "shards": missing,
        }
        (work / "job.json").write_text(json.dumps(job))
        with progress(len(prompts), what, "prompts", done=done()) as bar:
            for _ in _running(settings.vllm, worker_devices(settings.vllm, len(missing)), work):
                bar.advance(done() - bar.done)
    found = [json.loads(path.read_text()) for path in shards]
    answers = [Sample(*answer) for shard in found for answer in shard["answers"]]
    return answers, sorted({shard["vllm"] for shard in found})


def prompt_seed(seed: int, stream: int) -> int:
    """Seed of a prompt's random numbers: 63 bits of a hash, so that neighbouring seeds are unrelated."""
    return int.from_bytes(hashlib.sha256(f"{seed} {stream}".encode()).digest()[:8], "big") >> 1


def engine_arguments(model: Path, settings: GenerationSettings, longest_prompt: int) -> dict[str, Any]:
    """Arguments of `vllm.LLM`; a `KitError` if `max_model_len` has no room for the longest prompt and its answer."""
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
    """CUDA_VISIBLE_DEVICES of each process, at most one per shard; a `KitError` if more are requested than visible."""
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


def _running(settings: VllmSettings, devices: Sequence[str], work: Path) -> Iterator[None]:
    """Start a process on each set of devices, yield regularly until all have finished, and leave none running."""
    environment = runtime.child_environment()
    environment.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # one process fewer, and a repeatable schedule
    environment.setdefault("VLLM_RPC_BASE_PATH", "/tmp")  # of sockets, for which TMPDIR may be too long
    environment |= {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    with ExitStack() as stack:
        workers = []
        for k, own in enumerate(devices):
            # -I: neither the kit's folder nor PYTHONPATH may shadow the other environment's packages.
            python = str(Path(settings.python).expanduser())
            command = [python, "-I", str(WORKER), str(work / "job.json"), str(k), str(len(devices))]
            worker = subprocess.Popen(
                command,
                env=environment | {runtime.VISIBLE_GPUS: own},
                stdin=subprocess.PIPE,  # which closes with the stack: the worker's sign to end
                stdout=stack.enter_context(open(work / f"worker-{k}.log", "wb")),
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            workers.append(stack.enter_context(worker))
        running = True
        while running:
            time.sleep(_POLL_S)
            running = None in [worker.poll() for worker in workers]
            _check_alive(workers, work)
            yield


def _check_alive(workers: Sequence[subprocess.Popen[bytes]], work: Path) -> None:
    for k, worker in enumerate(workers):
        if code := worker.poll():
            path = work / f"worker-{k}.log"
            told = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-_TAIL:]
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
            raise WorkError(
                f"vLLM process {k} of {len(workers)} {how}; finished shards are kept, and the same command continues "
                f"from them. Its last lines ({relative(path)}):\n" + "\n".join(f"  {line}" for line in told)
            )


def health(
    model: Path, prompts: Sequence[Sequence[int]], answers: Sequence[Sample], settings: VllmSettings
) -> dict[str, Any]:
    """Differences between vLLM's log-probabilities and the kit's, in nats per response token: is it the same policy?

    This is only a check. The opponent's log-probabilities always come from the kit, since a difference between two
    engines would look like a drift of the policy.

    Returns:
        JSON data: `rows` compared, evenly spaced, `mean_difference`, `largest_difference` (absolute), and the `limit`.
    """
    from spin_utils.model.logprobs import score  # needs torch
    from spin_utils.model.packing import Group

    rows = np.unique(np.linspace(0, len(prompts) - 1, min(_CHECKED_ROWS, len(prompts))).astype(int)).tolist()
    checked = [answers[i] for i in rows]
    groups = [Group(prompts[i], (answer.token_ids,)) for i, answer in zip(rows, checked, strict=True)]
    ours = score(base.load_for_inference(model), groups, micro_batch_tokens=_CHECKED_TOKENS)
    differences = np.array([(a.logp - own) / len(a.token_ids) for a, (own,) in zip(checked, ours, strict=True)])
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
