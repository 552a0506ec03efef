# The experiments as rules, one per step of the plan (spin_utils/plan.py). Every step is one artifact; every
# notebook step runs its notebook through the strict papermill wrapper. Usually called by `make reproduce`:
#
#   snakemake --config profile=cpu seeds=0 --cores all
#
# `--dry-run` shows what would be done; `--dag` draws it; executor plugins run it on a cluster.
import sys

from spin_utils import cli, paths, plan, profiles

PROFILE = str(config.get("profile", "cpu"))
SEEDS = cli.parse_seeds(str(config.get("seeds", "0")))
PLANS = plan.make_all(profiles.load(PROFILE), SEEDS)
# Snakemake caps the threads of every library at a rule's `threads`, which are 1 unless a rule says otherwise.
THREADS = max(1, (workflow.cores or 1) // int(config.get("jobs", 1)))
STEPS = {step.directory: (p, step) for p in PLANS for step in p}
TABLES, FIRST_TABLES = plan.tables(PLANS), plan.first_tables(PLANS)


def manifests(directories):
    return [str(directory / "manifest.json") for directory in directories]


rule all:
    default_target: True
    input:
        manifests([TABLES.directory]),


for directory, (p, step) in STEPS.items():

    rule:
        name:
            f"{step.name} (seed {p.seed})"
        input:
            manifests(p.directory(name) for name in step.inputs),
        output:
            manifests([directory]),
        threads: THREADS
        priority: len(STEPS) - list(STEPS).index(directory)  # the main chain first, in the plan's order
        params:
            command=cli.step_command(PROFILE, p.seed, step.name),
        shell:
            "{params.command}"


rule first_tables:
    input:
        manifests(PLANS[0].directory(name) for name in FIRST_TABLES.inputs),
    output:
        manifests([FIRST_TABLES.directory]),
    priority: len(STEPS)
    params:
        command=cli.tables_command(PROFILE, SEEDS, "first-tables"),
    shell:
        "{params.command}"


rule tables:  # after the first ones, which write the same files
    input:
        manifests([FIRST_TABLES.directory]),
        manifests(d for d, (_, step) in STEPS.items() if step.stage in (*plan.MEASURED, "spin")),
    output:
        manifests([TABLES.directory]),
    params:
        command=cli.tables_command(PROFILE, SEEDS),
    shell:
        "{params.command}"
