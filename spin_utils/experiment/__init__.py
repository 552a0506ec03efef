"""Algorithm 1 and everything around it: the plan of a run, the making of each step, and what it needs of a machine.

Doors: `plan.make` (every step with its inputs), `stages.run` (make a step), `self_play` (the SPIN iterations),
`publishing` (finished steps to results), `check` (does it fit this machine?) and `dpo`.
"""
