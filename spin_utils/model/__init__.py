"""The language model and its fast, exact code paths: packed log-probabilities, attention without padding, sampling.

Doors: `base` (find, load and save a model), `logprobs` (summed log-probabilities of responses), `sampling.sample`
(y' ~ p_theta(.|x)), `packing` (how pairs are laid out in memory and on disk), `vllm` (the alternative sampler).
"""
