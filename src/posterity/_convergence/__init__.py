"""R-hat, ESS and acceptance of chains, in bounded memory, while they grow.

`block_moments` keeps moments, `diagnostics` says what follows from them, `diagnosis` follows a run. They are the
classic ones; the rank-normalised R-hat of a summary is arviz-stats', see `_analysis`.
"""
