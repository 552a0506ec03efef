"""Everything that can be configured: frozen dataclasses with a sentence per field, read from YAML profiles.

Doors: `profiles.load` (a profile by name or file), `run` (training, self-play, evaluation), `inputs` (model,
demonstrations, template), `machine` (vLLM, the scheduler, MT-Bench's judge) and `names.ModelName`. Unknown names and
impossible values are refused here.
"""
