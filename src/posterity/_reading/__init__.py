"""A run that is read: by the process that writes it, or by any other.

`pinned_view`: a run at one moment; `followed_run`: one that somebody else writes. `selection` says which samples,
`epoch_sources` where they are, `gather` fetches them with all cores. `draws`, `variables`, `xarray_data`: lazily, for
xarray and ArviZ. What users call: `snapshot`, `reads`, `run`, `load`, and awaited `async_snapshot`, `async_reads`,
`async_run`.
"""
