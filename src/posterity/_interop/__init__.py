"""Runs made of what others wrote, and written for others to read.

`importer` finds the import for a source: `import_emcee`, `import_eryn`, `import_jexplore`, which share `imported`.
`export` writes a run through `netcdf_file` or `zarr_store`.
"""
