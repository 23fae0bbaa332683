"""The bytes of a file: an epoch taken apart, laid out, encoded as HDF5, and read again.

Taken apart: `flatten`, `dtypes`. Where its parts lie: `schema`, `layout`, `frame`, `samples`, `batch_encoder`; each
with a `checksum`. HDF5's own bytes: `hdf5`, `lookup3`. Compressed arrays: `codec`, `codec_trial`, `chunks`,
`compressed`. One file: `file_header`, `file_writer`, `file_reader`, with `rows` and `row_reader`; a file by itself:
`single_file`. `foreign_hdf5`: epochs in files that others wrote (samplers' own formats are in `_interop`).
"""
