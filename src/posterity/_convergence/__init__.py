"""R-hat, ESS and acceptance of chains, in bounded memory, while they grow.

`block_moments` keeps moments, `diagnostics` says what follows from them, `diagnosis` follows a run.
"""
