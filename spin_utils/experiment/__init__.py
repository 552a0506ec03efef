"""Algorithm 1 and everything around it: the plan of a run, the code that makes each step, and the resources it needs.

Doors: `plan.make` (every step with its inputs), `run.make` (make a step), `play` (the SPIN iterations), `measure`
(evaluations, held-out pairs, scores token by token), `publish` (finished steps to results), `preflight.check` (does it
fit on this machine?) and `dpo`.
"""
