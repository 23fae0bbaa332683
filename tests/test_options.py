"""The options of a backend, checked where they are given."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posterity._format.codec import Packing
from posterity._model.file_names import file_name, file_pattern
from posterity._model.options import Options, parse_options
from posterity.errors import MissingExtra, UnknownOption


def test_nothing_given_means_the_defaults():
    """Without options a run is kept in the present folder, one epoch a file."""
    assert parse_options(0, "./", {}) == Options()


@pytest.mark.parametrize("outdir", ["runs/a", Path("runs/a"), b"runs/a"])
def test_a_folder_is_given_as_text_path_or_bytes(outdir):
    """Whatever names a folder becomes a path."""
    assert parse_options(0, outdir, {}).outdir == Path("runs/a")


@pytest.mark.parametrize("burn", [7, np.int64(7), np.uint8(7), np.array(7)])
def test_burn_may_come_from_numpy(burn):
    """A whole number of NumPy's is a whole number."""
    options = parse_options(burn, "", {"epochs_per_file": np.int32(3)})
    assert (options.burn, type(options.burn), options.epochs_per_file) == (7, int, 3)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("epoch_per_file", "epochs_per_file"), ("inmem_epoch", "inmem_epochs"), ("savestats", "save_stats")],
)
def test_an_unknown_option_names_the_nearest_one(name, nearest):
    """A slip of the pen is a `TypeError` that says what was probably meant."""
    with pytest.raises(UnknownOption, match=f"'{name}'.*did you mean '{nearest}'"):
        parse_options(0, "", {name: 1})


def test_an_option_like_no_other_lists_them_all():
    """An unknown option that is near to none gets the list."""
    with pytest.raises(TypeError, match=r"the options are burn, outdir, .*diagnose"):
        parse_options(0, "", {"xyzzy": 1})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs_per_file", "3"),
        ("epochs_per_file", None),
        ("epochs_per_file", 2.5),
        ("epochs_per_file", True),
        ("save_stats", 1),
        ("mode", "r"),
        ("mode", 0),
        ("on_full", "drop"),
        ("outfile_fmt", 3),
        ("retry_after_s", "soon"),
        ("trusted_classes", (1,)),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_by_name(name, value):
    """A `TypeError` names the option."""
    with pytest.raises(TypeError, match=name):
        parse_options(0, "", {name: value})


@pytest.mark.parametrize("burn", ["3", None, 2.5, True])
def test_a_burn_that_is_no_number_of_samples_is_refused(burn):
    """Burn is a whole number."""
    with pytest.raises(TypeError, match="burn"):
        parse_options(burn, "", {})


@pytest.mark.parametrize("outdir", [3, None])
def test_a_folder_that_is_no_path_is_refused(outdir):
    """The folder must be something that names a path."""
    with pytest.raises(TypeError):
        parse_options(0, outdir, {})


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("burn", 0),
        ("epochs_per_file", 1),
        ("inmem_epochs", 0),
        ("max_pending_bytes", 1),
        ("max_pending_epochs", 1),
        ("reader_threads", 1),
        ("retry_after_s", 0.0),
        ("retry_at_most_s", 0.0),
        ("warn_free_bytes", 0),
        ("exit_timeout_s", 0.0),
    ],
)
def test_the_least_value_is_taken_and_one_below_is_refused(name, least):
    """A `ValueError` names the option, the least it may be, and what was given."""

    def parse(value):
        return parse_options(
            **{"burn": 0, "outdir": "", "given": {}} | ({"burn": value} if name == "burn" else {"given": {name: value}})
        )

    assert getattr(parse(least), name) == least
    with pytest.raises(ValueError, match=f"{name} must be at least {least}, got {least - 1}"):
        parse(least - 1)


def test_not_a_number_is_out_of_range():
    """A pause of NaN seconds is refused."""
    with pytest.raises(ValueError, match="retry_after_s"):
        parse_options(0, "", {"retry_after_s": float("nan")})


GOOD_FORMATS = ["epochs_%d.h5", "%d", "a%04d.h5", "100%%_%d.h5", "%i.hdf5", "%5d.h5", "%05i-x", "a b(%d)+.h5", "é%d"]


@pytest.mark.parametrize("fmt", GOOD_FORMATS)
def test_a_format_with_one_number_is_taken(fmt):
    """The file's number may be padded, and anything plain may stand around it."""
    assert parse_options(0, "", {"outfile_fmt": fmt}).outfile_fmt == fmt


@pytest.mark.parametrize(
    ("fmt", "says"),
    [
        ("epochs.h5", "one %d"),
        ("", "one %d"),
        ("%d_%d.h5", "one %d"),
        ("%s.h5", "one %d"),
        ("%d%s", "one %d"),
        ("%%d", "one %d"),
        ("%(a)d", "one %d"),
        ("%-5d", "one %d"),
        ("%+d", "one %d"),
        ("100% of %d", "one %d"),
        ("sub/%d.h5", "outdir"),
        ("../%d.h5", "outdir"),
        ("\\%d", "outdir"),
        ("%d\0", "outdir"),
        (".%d.h5", "visible"),
        ("%300d", "too long"),
        ("%999999999d", "one %d"),
        ("%d" + "x" * 300, "too long"),
        ("é" * 100 + "%d", "too long"),
    ],
)
def test_a_format_that_names_no_files_in_the_folder_is_refused(fmt, says):
    """A `ValueError` shows the format and says what it must have."""
    with pytest.raises(ValueError, match=re.escape(says)) as caught:
        parse_options(0, "", {"outfile_fmt": fmt})
    assert repr(fmt) in str(caught.value)


@pytest.mark.parametrize("fmt", GOOD_FORMATS)
@given(number=st.integers(0, 10**12))
def test_the_pattern_finds_the_number_in_a_name(fmt, number):
    """The pattern of a format matches the name of each file, and gives its number."""
    match = file_pattern(fmt).fullmatch(file_name(fmt, number))
    assert match is not None
    assert int(match.group(1)) == number


@pytest.mark.parametrize(
    ("fmt", "name"),
    [
        ("epochs_%d.h5", "epochs_1xh5"),
        ("epochs_%d.h5", "epochs_1.h5.bak"),
        ("epochs_%d.h5", "my_epochs_1.h5"),
        ("epochs_%d.h5", "epochs_.h5"),
        ("epochs_%d.h5", "epochs_-1.h5"),
        ("a+%d", "aa1"),
        ("100%%_%d", "100%%_1"),
    ],
)
def test_the_pattern_matches_no_other_name(fmt, name):
    """What is no file's name isn't matched, whatever signs the format holds."""
    assert file_pattern(fmt).fullmatch(name) is None


@pytest.mark.parametrize(("fmt", "name"), [("epochs_%d.h5", "epochs_12.h5"), ("a%04d", "a0012"), ("%%%d", "%12")])
def test_a_files_name_has_its_number(fmt, name):
    """The format says where the number goes and how it is padded."""
    assert file_name(fmt, 12) == name


# ---- compression -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_options", "packing"),
    [
        ({}, None),
        ({"compression": None}, None),
        ({"compression": "auto"}, None),
        ({"compression": "gzip"}, Packing("gzip", 1, False)),
        ({"compression": "gzip", "compression_level": np.int64(9), "shuffle": True}, Packing("gzip", 9, True)),
        ({"compression": "zstd", "compression_level": 22}, Packing("zstd", 22, False)),
    ],
)
def test_how_arrays_are_packed(given_options, packing):
    """Not at all by default; fast, without shuffle, if nothing else is asked for."""
    assert parse_options(0, "", given_options).packing == packing


@pytest.mark.parametrize(
    ("given_options", "error", "message"),
    [
        ({"compression": "lzf"}, TypeError, "lzf"),
        ({"compression": 4}, TypeError, "compression"),
        ({"compression": "gzip", "compression_level": 0}, ValueError, "must be 1 to 9, got 0"),
        ({"compression": "gzip", "compression_level": 10}, ValueError, "must be 1 to 9, got 10"),
        ({"compression": "zstd", "compression_level": 23}, ValueError, "must be 1 to 22, got 23"),
        ({"compression": "zstd", "compression_level": 1.5}, TypeError, "compression_level"),
        ({"compression_level": 3}, ValueError, "compression is None"),
        ({"shuffle": True}, ValueError, "compression is None"),
        ({"compression": "auto", "shuffle": True}, ValueError, "compression is 'auto'"),
    ],
)
def test_a_wrong_compression_is_refused(given_options, error, message):
    """At opening, before anything is written."""
    with pytest.raises(error, match=message):
        parse_options(0, "", given_options)


def test_zstd_needs_its_extra(monkeypatch):
    """Who asks for it without the package is told at opening; "auto" does without."""
    monkeypatch.setitem(sys.modules, "zstandard", None)
    parse_options(0, "", {"compression": "auto"})
    with pytest.raises(MissingExtra, match=r"posterity\[zstd\]"):
        parse_options(0, "", {"compression": "zstd"})
