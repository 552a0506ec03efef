"""All benchmarks in turn, and their ratios in one file: `make bench`, or `python -m benchmarks`.

Writes benchmarks/results/summary.json, unless only some are run: machine, commit, versions, and for each ratio its
median, lowest, highest and number of runs. Greater is better for speed (ours over theirs, or the share of the matrix
rate), less is better for memory and cost.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys

BENCHMARKS = {
    "train_vs_trl": ["train_vs_trl"],
    "train_at_scale": ["train_vs_trl", "--scale"],
    "sample_vs_generate": ["sample_vs_generate"],
    "sample_vs_generate_batch": ["sample_vs_generate", "--continuous"],
    "score_vs_lm_eval": ["score_vs_lm_eval"],
    "where_time_goes": ["where_time_goes"],
}
"""By name of the file of results, the module and its options."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="cpu", help="its base model is timed")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", nargs="*", choices=list(BENCHMARKS), default=list(BENCHMARKS))
    options = parser.parse_args()
    if options.runs < 1:
        parser.error(f"--runs {options.runs}: give at least 1")
    from benchmarks.interleaved import RESULTS, machine, write  # seconds of imports, after what can be refused
    from spin_utils.experiment import plan, run
    from spin_utils.files import runtime
    from spin_utils.settings import profiles

    runtime.configure()
    model = run.make(plan.make(profiles.load(options.profile), 0), "base")
    ratios: dict[str, dict[str, float]] = {}
    for name in options.only:
        module, *arguments = BENCHMARKS[name]
        command = [sys.executable, "-m", f"benchmarks.{module}", "--model", os.path.relpath(model)]
        environment = runtime.child_environment()
        subprocess.run([*command, "--runs", str(options.runs), *arguments], check=True, env=environment)
        record = json.loads((RESULTS / f"{name}.json").read_text())
        ratios |= record["ratios"]
    if len(options.only) == len(BENCHMARKS):
        write("summary", {"machine": machine(), "ratios": ratios})
    for name, value in ratios.items():
        print(f"{name:32s} {value['median']:8.2f}  [{value['low']:.2f}, {value['high']:.2f}]  {value['runs']} runs")


if __name__ == "__main__":
    main()
