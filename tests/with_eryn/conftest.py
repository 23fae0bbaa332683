"""Eryn warns of its own: of its docstrings, of NumPy's in1d, and of proposals that are all outside the prior."""

import contextlib
import warnings

import pytest

_ERYNS_OWN = [
    "ignore:`in1d` is deprecated:DeprecationWarning",
    "ignore:`trapz` is deprecated:DeprecationWarning",
    "ignore:invalid value encountered in divide:RuntimeWarning",  # a move that had no turn yet
    "ignore:All points input for the Likelihood have a log prior of -inf:UserWarning",
]

# Not every installer compiles what it installs; then the first import does, and meets the invalid escape sequences in
# Eryn's docstrings. That is while tests are collected: no mark of theirs holds yet.
with warnings.catch_warnings(), contextlib.suppress(ImportError):
    for category in (DeprecationWarning, SyntaxWarning):  # before Python 3.12, and since
        warnings.filterwarnings("ignore", ".*invalid escape sequence", category, module=".*/eryn/")
    import eryn.ensemble  # noqa: F401  # and with it all of Eryn


def pytest_collection_modifyitems(items):
    for item in items:
        if "with_eryn" in item.path.parts:
            for each in _ERYNS_OWN:
                item.add_marker(pytest.mark.filterwarnings(each))
