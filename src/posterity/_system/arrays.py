"""What an array is in all of this package: one of NumPy's, of any type and shape."""

from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
