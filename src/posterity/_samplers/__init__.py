"""Samplers' own words on our runs: a room for each, and what they share.

`step_buffer` gathers single steps into epochs. `step_run`: a run of an ensemble's steps, written or only read;
`step_backend`: what its backends share. `emcee` and `eryn`: a backend, how steps lie in epochs, how they are read.
`jax`: kernels run epoch by epoch, and pytrees.
"""
