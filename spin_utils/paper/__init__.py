"""What the paper says, what we measured, and whether the two agree.

Doors: `published` (the paper's numbers), `results` (our measurements, read, checked and written), `statistics`
(intervals and paired comparisons), `power` (how large a run has to be), `agreement` (of a run with the committed
results), `generations` (measures of the opponents' responses), `claims` (the paper's claims and our verdicts on them)
and `compare` (two models on the same items).
"""
