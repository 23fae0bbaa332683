"""The epochs in `fixtures`, which version 0.1.0 wrote with `epochs_per_file=2` and a burn of 4.

`EPOCHS` are in `version-1`. `PACKED_EPOCHS` are in `version-2`: the first file is compressed with gzip, the second one
with zstd and shuffle. `EPOCHS` are in `version-3` once more, with `METADATA`. The files are never written again: each
later version must read them.
"""

import numpy as np

from posterity import Metadata, Parameter

BURN = 4
METADATA = Metadata(
    parameters={
        "p": (
            Parameter("m1", "Primary mass", "Msun", r"m_1"),
            Parameter("m2", "Secondary mass", "Msun"),
            Parameter("\u03c7"),
        ),
        "ll": (Parameter("ll"),),
    },
    chains={"temperature": 2, "walker": 1},
    attributes={"model": "\u03b2", "nan": float("nan"), "nested": {"list": [1, 2.5, None, True]}},
    versions={"posterity": "0.1.0", "python": "3.11.7", "numpy": "2.4.6", "h5py": "3.16.0"},
    host="node17",
    started_at=1795864889.25,
)


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


def _packed_epoch(index):
    p = np.repeat(np.arange(600.0), 4).reshape(2, 3, 400)
    large = {
        "covs": np.tile(np.eye(40), (2, 1, 1)) * (index + 1),
        "stats": {"zeros": np.zeros(100_000), "odd": np.arange(9000, dtype="u2") // 100},
        "fields": np.zeros(1500, np.dtype([("a", "u1"), ("b", "<f8")], align=True)),
    }
    large["fields"]["b"] = index
    samples = {
        "p": np.tile(p, (1, 1, 2)) + index,
        "ll": -p[:, :1].repeat(2, axis=2).astype("f4"),
        "q": p[:, :2].repeat(2, axis=2),
    }
    return {**_epoch(index), "samples": samples, **large}


PACKED_EPOCHS = [_packed_epoch(index) for index in range(3)]
