"""Samplers' own words on our runs: a room for each, and what they share.

`step_buffer` gathers single steps into epochs. `step_run`: a run that needn't be there yet. `emcee` and `eryn`: a
backend, its run, how steps lie in epochs. `jax`: kernels run epoch by epoch, and pytrees.
"""
