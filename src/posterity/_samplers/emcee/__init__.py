"""emcee: `backend` is what its sampler calls, `run` its run, `epochs` how an ensemble's steps lie in epochs."""
