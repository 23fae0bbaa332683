"""Eryn: `backend` is what its sampler calls, `reads` what can be asked of a run.

`run` is the run of its steps, `epochs` how branches, leaves and temperatures lie in epochs.
"""
