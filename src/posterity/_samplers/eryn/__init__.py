"""Eryn: `backend` is what its sampler calls, `reads` what can be asked of a run.

`run` reads steps as it asks, `epochs` is how branches, leaves and temperatures lie in epochs.
"""
