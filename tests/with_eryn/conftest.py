"""Eryn warns of its own: of NumPy's in1d, and of proposals that are all outside the prior."""

import pytest

_ERYNS_OWN = [
    "ignore:`in1d` is deprecated:DeprecationWarning",
    "ignore:`trapz` is deprecated:DeprecationWarning",
    "ignore:invalid value encountered in divide:RuntimeWarning",  # a move that had no turn yet
    "ignore:All points input for the Likelihood have a log prior of -inf:UserWarning",
]


def pytest_collection_modifyitems(items):
    for item in items:
        if "with_eryn" in item.path.parts:
            for each in _ERYNS_OWN:
                item.add_marker(pytest.mark.filterwarnings(each))
