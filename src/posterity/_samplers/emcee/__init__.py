"""emcee: `backend` is what its sampler calls, `run` reads steps as it asks, `epochs` is how they lie in epochs."""
