"""Worker in vLLM's environment: samples responses to shards of prompts, token ids in and token ids out.

    python -I vllm_worker.py JOB.json WORKER WORKERS

Needs vllm and pyarrow and imports nothing from the kit, whose `vllm.py` starts it and reads its output. Written against
vLLM 0.33.0 (vllm/entrypoints/llm.py, vllm/sampling_params.py, vllm/outputs.py of that release).

A shard's prompts are a Parquet file with the columns `stream`, `seed` and `prompt_ids`. Its responses are another, with
`stream`, `generated_ids`, `finish_reason` and `logp`, written atomically.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

SCHEMA = pa.schema(
    [
        ("stream", pa.int64()),
        ("generated_ids", pa.list_(pa.int32())),
        ("finish_reason", pa.string()),
        ("logp", pa.float64()),
    ]
)


def main(job_path: str, worker: int, workers: int) -> None:
    """Answer every `workers`-th shard of a job, starting with shard `worker`."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import vllm

    job = json.loads(Path(job_path).read_text(encoding="utf-8"))
    shards = [(Path(prompts), Path(answers)) for prompts, answers in job["shards"][worker::workers]]
    model = vllm.LLM(**job["engine"])
    for prompts, answers in shards:
        _write(answers, answer(vllm, model, pq.read_table(prompts), job["sampling"]), {"vllm": vllm.__version__})


def answer(vllm: Any, model: Any, prompts: pa.Table, sampling: dict[str, Any]) -> pa.Table:
    """Responses to the prompts of a shard, in order.

    `cumulative_logprob` sums the sampled tokens' log-probabilities, which vLLM returns because `logprobs` is 0 and not
    None. With logprobs_mode `raw_logprobs` they are the model's own, before temperature and truncation.
    """
    rows = prompts.to_pylist()
    outputs = model.generate(
        [vllm.TokensPrompt(prompt_token_ids=row["prompt_ids"]) for row in rows],
        [vllm.SamplingParams(seed=row["seed"], **sampling) for row in rows],
        use_tqdm=False,
    )
    columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
    for row, output in zip(rows, outputs, strict=True):
        if list(output.prompt_token_ids) != row["prompt_ids"]:
            raise RuntimeError(f"stream {row['stream']}: vLLM answered a different prompt from the one it was given")
        (completion,) = output.outputs
        columns["stream"].append(row["stream"])
        columns["generated_ids"].append(list(completion.token_ids))
        columns["finish_reason"].append(completion.finish_reason)
        columns["logp"].append(completion.cumulative_logprob)
    return pa.table(columns, schema=SCHEMA)


def _write(path: Path, table: pa.Table, made_by: dict[str, str]) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    pq.write_table(table.replace_schema_metadata(made_by), partial)
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)


def _end_with_parent() -> None:
    # The kit holds the other end of this pipe. When it is gone, even if killed, nothing may keep the GPUs.
    while os.read(0, 1):
        pass
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":  # vLLM may start processes that import this file
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
