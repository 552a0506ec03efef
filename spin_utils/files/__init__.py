"""Files and processes: what is on disk is complete or absent, and a killed run resumes where it stopped.

Doors: `paths` (where everything is), `disk` (atomic writes, hashes, JSON), `artifacts` (a directory with a manifest),
`runtime` (allocator, logging, progress, GPUs, precision) and `processes` (several processes that share one stage).
Knows nothing of SPIN.
"""
