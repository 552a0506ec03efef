# The experiments as rules, one per step of the plan (spin_utils/experiment/plan.py). Every step is one artifact; those
# of the main chain run their notebook through the strict papermill wrapper. Usually called by `make reproduce`:
#
#   snakemake --workflow-profile cluster/node --config profile=cpu seeds=0
#
# `--dry-run` shows what would be done; `--dag` draws it; `--workflow-profile cluster/slurm` runs it on a cluster.
from spin_utils.cli import main as cli
from spin_utils.cli import scheduler
from spin_utils.experiment import plan, run
from spin_utils.settings import profiles

PROFILE = str(config.get("profile", "cpu"))
SEEDS = str(config.get("seeds", "0"))
LOADED = profiles.load(PROFILE)
PLANS = plan.make_all(LOADED, cli.parse_seeds(SEEDS))
# Snakemake caps the threads of every library at a rule's `threads`, which are 1 unless a rule says otherwise.
# A cluster has no number of cores that it could share out: there a step gets what its profile says, or one.
THREADS = max(1, (workflow.resource_settings.cores or 1) // int(config.get("jobs", 1)))
STEPS = {step.directory: (p, step) for p in PLANS for step in p}
TABLES, FIRST_TABLES = plan.tables(PLANS), plan.first_tables(PLANS)


def manifests(directories):
    return [str(directory / "manifest.json") for directory in directories]


def kept(directories):
    """Output that is not deleted before its rule runs: after a kill an artifact may be whole that has no record here."""
    return [update(path) for path in manifests(directories)]


rule all:
    default_target: True
    input:
        manifests([TABLES.directory]),


def asked(resources):
    mega, minutes = 1000 * resources.memory_gb, int(60 * resources.hours)
    return {"nodes": 1, "gpu": resources.gpus, "mem_mb": mega, "runtime": minutes}  # not GPUs of several nodes


for directory, (p, step) in STEPS.items():
    asks = run.resources(LOADED, step)

    rule:
        name:
            f"{step.name}-seed-{p.seed}"  # safe in a shell: executors write it into commands unquoted
        input:
            manifests(p.directory(name) for name in step.inputs),
        output:
            kept([directory]),
        threads: asks.cpus or THREADS
        resources:
            **asked(asks),
        localrule: run.stays_here(LOADED, step)
        priority: len(STEPS) - list(STEPS).index(directory)  # the main chain first, in the plan's order
        params:
            command=scheduler.step_command(PROFILE, step.name, "--seed", str(p.seed)),
        shell:
            "{params.command} --gpus {resources.gpu}"


rule first_tables:
    input:
        manifests(PLANS[0].directory(name) for name in FIRST_TABLES.inputs),
    output:
        kept([FIRST_TABLES.directory]),
    resources:
        **asked(LOADED.resources.other),
    priority: len(STEPS)
    params:
        command=scheduler.step_command(PROFILE, "first-tables", "--seeds", SEEDS),
    shell:
        "{params.command}"


rule tables:  # after the first ones, which write the same files
    input:
        manifests([FIRST_TABLES.directory]),
        manifests(d for d, (_, step) in STEPS.items() if step.stage in plan.MEASURED),
    output:
        kept([TABLES.directory]),
    resources:
        **asked(LOADED.resources.other),
    params:
        command=scheduler.step_command(PROFILE, "tables", "--seeds", SEEDS),
    shell:
        "{params.command}"
