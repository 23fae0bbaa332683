"""The run folder: the one place that writes it.

`store` says in which order, `data_files` writes the HDF5 files. The journal: `records`, `journal`, and what it says,
`catalog` with `file_table`. `name_changes`: renames that are due. `lock`: who writes. `recovery`, `rebuild`: what was
left in the middle of something. Where an epoch is: `epoch_locations`, `file_lookup`.
"""
