"""JAX: `run_kernel` runs a kernel epoch by epoch.

`kernel` is what one must be, `chain_kernel` and `numpyro_kernel` are such. `trees` takes pytrees apart with JAX,
`pytrees` puts them together without it.
"""
