"""Algorithm 1 and everything around it: the plan of a run, the making of each step, and what it needs of a machine.

Doors: `plan.make` (every step with its inputs), `run.make` (make a step), `play` (the SPIN iterations), `measure`
(evaluations, held-out pairs, answers token by token), `publish` (finished steps to results), `preflight.check` (does
it fit this machine?) and `dpo`.
"""
