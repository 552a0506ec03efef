"""Files and processes: what is on disk is whole or absent, and a killed run goes on where it stopped.

Doors: `paths` (where everything is), `artifacts` (a directory with a manifest), `runtime` (allocator, threads, logging)
and `processes` (several processes that share one stage). Knows nothing of SPIN.
"""
