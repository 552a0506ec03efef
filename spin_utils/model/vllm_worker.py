"""Worker in vLLM's environment: samples responses to shards of prompts, token ids in and token ids out.

    python -I vllm_worker.py JOB.json WORKER WORKERS

Needs vllm and imports nothing from the kit, whose `vllm.py` starts it and reads its output. Written against vLLM 0.33.0
(vllm/entrypoints/llm.py, vllm/sampling_params.py, vllm/outputs.py of that release).

A shard in the job is the path of its answers, a JSON file written atomically, and its prompts, each with `seed` and
`prompt_ids`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any


def main(job_path: str, worker: int, workers: int) -> None:
    """Answer every `workers`-th shard of a job, starting with shard `worker`."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import vllm

    job = json.loads(Path(job_path).read_text(encoding="utf-8"))
    model = vllm.LLM(**job["engine"])
    for path, prompts in job["shards"][worker::workers]:
        found = {"vllm": vllm.__version__, "answers": answer(vllm, model, prompts, job["sampling"])}
        partial = Path(f"{path}.partial")
        partial.write_text(json.dumps(found))
        os.replace(partial, path)


def answer(vllm: Any, model: Any, prompts: list[dict[str, Any]], sampling: dict[str, Any]) -> list[tuple[Any, ...]]:
    """Token ids, finish reason and log-probability of the response to each prompt.

    `cumulative_logprob` sums the sampled tokens' log-probabilities, which vLLM returns because `logprobs` is 0 and not
    None. With logprobs_mode `raw_logprobs` they are the model's own, before temperature and truncation.
    """
    outputs = model.generate(
        [vllm.TokensPrompt(prompt_token_ids=prompt["prompt_ids"]) for prompt in prompts],
        [vllm.SamplingParams(seed=prompt["seed"], **sampling) for prompt in prompts],
        use_tqdm=False,
    )
    answers = []
    for prompt, output in zip(prompts, outputs, strict=True):
        (found,) = output.outputs
        if list(output.prompt_token_ids) != prompt["prompt_ids"] or found.finish_reason not in ("stop", "length"):
            raise RuntimeError(f"vLLM answered another prompt, or ended an answer with {found.finish_reason!r}")
        answers.append((list(found.token_ids), found.finish_reason, found.cumulative_logprob))
    return answers


def _end_with_parent() -> None:
    # The kit holds the other end of this pipe. When it is gone, even if killed, nothing may keep the GPUs.
    while os.read(0, 1):
        pass
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":  # vLLM may start processes that import this file
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
