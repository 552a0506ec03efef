"""Scores of a checkpoint, item by item: lm-eval's tasks on the kit's fast paths, held-out pairs, MT-Bench.

Doors: `evaluation.evaluate`, `heldout`, `mt_bench_answers` and `judge`.
"""
