"""What the paper says and whether our numbers agree: published values, claims, statistics, verdicts.

Doors: `published` (the paper's numbers), `registry` (its claims), `results` (our measurements as data frames),
`statistics` (intervals and paired comparisons) and `verdicts`.
"""
