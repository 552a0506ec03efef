"""The command line `spin-repro`, notebooks run through papermill, and the scheduler that walks the plan.

Doors: `cli.main`, `notebooks.run` and `reproduction`.
"""
