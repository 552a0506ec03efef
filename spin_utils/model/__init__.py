"""The language model and its fast exact paths: packed log-probabilities, attention without padding, sampling.

Doors: `models` (load and save), `logprobs` (summed log-probabilities of packed responses), `sampling.sample`
(y' ~ p_theta(.|x)), `packing` and `pairs` (how pairs are laid out in memory and on disk).
"""
