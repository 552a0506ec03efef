"""Scores of a checkpoint, item by item: lm-eval's tasks on the kit's fast paths, held-out pairs, MT-Bench.

Doors: `harness.evaluate` and `harness.check_tasks`, `heldout.drifts`, `mt_bench.converse`, `judge.Judge`,
`instructions.questions`.
"""
