"""The epochs in `fixtures/version-1`, which version 0.1.0 wrote with `epochs_per_file=2` and a burn of 4.

The files there are never written again: each later version must read them.
"""

import numpy as np

BURN = 4


def _epoch(index):
    p = np.arange(24, dtype=float).reshape(2, 3, 4) + 100 * index
    return {
        "samples": {"p": p, "ll": p[:, :1].astype(np.float32), "accepted": p[:, :1] % 2 > 0},
        "covs": np.stack([np.eye(3) * (index + 1)] * 2),
        "stats": {"acceptance": 0.25 * index, "counts": np.arange(3)},
        "cycle": index,
        "sampling": {"model": "gaussian", "temperatures": [1.0, 2.5], "nested": {"none": None, "is_good": True}},
        "state": {"key": np.array([index, 2**32 - 1], np.uint32), "words": ["a", "\u03b2", ""], "big": 2**80},
    }


EPOCHS = [_epoch(index) for index in range(3)]
