"""The command line `spin-repro`, notebooks run through papermill, and Snakemake walking the plan.

Doors: `main.main` (every command, with its help), `notebooks.run` (a notebook with checked parameters),
`scheduler` (the commands that Snakemake is given, and the process that runs it) and `live` (what a run shows).
"""
