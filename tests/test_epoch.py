"""Epochs: checked, owned, cut, and given back as objects."""

import dataclasses
import sys
import types

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import storable
from posterity._format.flatten import restore
from posterity._format.layout import layout_of
from posterity._format.samples import cut_samples, sample_shapes
from posterity._format.schema import encode_items
from posterity._ingest.owned import Held
from posterity._ingest.prepare import prepare
from posterity._reading.load import named_class, to_epoch
from posterity._system.buffer_pool import Buffers
from posterity.epoch import Epoch, ToBackend
from posterity.errors import EpochMismatch, NotStorable, UntrustedClass


def samples(nsamples=5, nchain=3, dim=2):
    return {"p": np.arange(float(nchain * dim * nsamples)).reshape(nchain, dim, nsamples)}


def own(epoch, *, copy=True, buffers=None):
    return prepare(epoch, save_stats=True).own(buffers or Buffers(1 << 20), copy=copy)


# ---- the class -------------------------------------------------------------------------------------------------------


class Walk(Epoch):
    """A user's own class."""

    class Inner(Epoch):
        pass


def test_an_epoch_has_what_it_was_given():
    """Samples, covariances and whatever else is given are attributes; others are kept in `others`."""
    p = samples()["p"]
    epoch = Epoch({"p": p}, covs=np.eye(2), stats={"a": 1}, cycle=2, sampling={"b": 3}, state="c", extra=4, more=[5])
    assert (epoch.samples["p"] is p, epoch.stats, epoch.cycle, epoch.sampling, epoch.state) == (
        True,
        {"a": 1},
        2,
        {"b": 3},
        "c",
    )
    assert epoch.others == {"extra": 4, "more": [5]}
    assert epoch.nsamples == 5
    assert repr(epoch) == "<Epoch p: (3, 2, 5)>"


def test_sampling_goes_on_from_the_last_sample():
    """The last sample of each name is `(nchain, dim)`."""
    epoch = Epoch(samples() | {"ll": np.zeros((3, 1, 5))})
    np.testing.assert_array_equal(epoch.last["p"], samples()["p"][:, :, 4])
    assert epoch.last["ll"].shape == (3, 1)


@pytest.mark.parametrize(("burn", "burned"), [(-1, 0), (0, 0), (2, 2), (4, 4)])
def test_an_epoch_gives_itself_without_what_is_burned(burn, burned):
    """`to_backend` says how many samples there were and how many are burned, and gives the rest as a dict."""
    nsamples, got, data = Epoch(samples()).to_backend(burn)
    assert (nsamples, got) == (5, burned)
    np.testing.assert_array_equal(data["samples"]["p"], samples()["p"][:, :, burned:])


def test_an_epoch_that_is_wholly_burned_gives_nothing():
    """When burn takes all samples, there is no dict."""
    assert Epoch(samples()).to_backend(9) == (5, 5, None)


def test_stats_can_be_left_out():
    """Without stats the dict has everything else."""
    epoch = Epoch(samples(), stats={"a": 1}, state=2)
    assert "stats" in epoch.to_backend()[2]
    assert set(epoch.to_backend(0, False)[2]) == {"samples", "state", "class"}


@pytest.mark.parametrize("kind", [Epoch, Walk, Walk.Inner])
def test_an_epoch_comes_back_from_its_dict(kind):
    """An epoch of whatever class names it in its dict, and comes back as one of it, with all that it had."""
    epoch = kind(samples(), covs=np.eye(2), sampling={"a": [1, None]}, extra="x")
    again = to_epoch(epoch.to_backend()[2], None, None, ())
    assert type(again) is kind
    storable.assert_same(again.to_backend()[2], epoch.to_backend()[2])
    assert isinstance(again, ToBackend)


# ---- checking --------------------------------------------------------------------------------------------------------


def test_a_dict_is_an_epoch():
    """A dict with samples is checked: its chains, samples, and the dim and dtype of each name are known."""
    kind = prepare({"samples": samples() | {"ll": np.zeros((3, 1, 5), "f4")}, "x": 1}, save_stats=True).kind
    assert (kind.nchain, kind.nsamples) == (3, 5)
    assert kind.shapes == {"p": (2, "<f8"), "ll": (1, "<f4")}
    assert kind.nbytes == 3 * 2 * 5 * 8 + 3 * 5 * 4 + 8


def test_an_object_is_asked_for_its_dict():
    """An object with `to_backend` is asked for all its samples, and told whether stats are wanted."""

    class Object:
        def to_backend(self, burn, stats):
            self.asked = (burn, stats)
            return 5, 0, {"samples": samples()}

    epoch = Object()
    assert prepare(epoch, save_stats=False).kind.nsamples == 5
    assert epoch.asked == (0, False)


@pytest.mark.parametrize("save_stats", [True, False])
def test_stats_are_left_out_when_they_are_not_wanted(save_stats):
    """Also those that a dict or an object brings all the same; the caller's dict stays as it is."""
    data = {"samples": samples(), "stats": {"a": 1}}
    items = prepare(data, save_stats=save_stats).kind.items
    assert any(item.path == "stats/a" for item in items) is save_stats
    assert "stats" in data


@pytest.mark.parametrize("epoch", [None, 3, "text", [1], samples, Epoch])
def test_what_is_no_epoch_is_refused(epoch):
    """What is neither a dict nor an object with `to_backend` is a TypeError that says what it is."""
    with pytest.raises(NotStorable, match="an epoch is a dict, or has to_backend"):
        prepare(epoch, save_stats=True)


def test_an_object_that_gives_nothing_is_refused():
    """An object without samples is no epoch."""

    class Nothing:
        def to_backend(self, burn, stats):
            return 0, 0, None

    with pytest.raises(EpochMismatch, match="gave no samples"):
        prepare(Nothing(), save_stats=True)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({}, "needs data"),
        ({"samples": {}}, r"got \[\]"),
        ({"samples": {"q": np.zeros((1, 1, 1))}}, r"got \['q'\]"),
        ({"samples": np.zeros((1, 1, 1))}, "got ndarray"),
        ({"samples": {"p": np.zeros((2, 3))}}, r"samples/p must be an array .*\(2, 3\)"),
        ({"samples": {"p": [[[1.0]]]}}, "must be an array"),
        ({"samples": {"p": 1.0}}, "must be an array"),
        ({"samples": {"p": np.zeros((1, 1, 1)), "q": {"x": np.zeros((1, 1, 1))}}}, "must be an array"),
        ({"samples": {"p": np.zeros((1, 1, 1)), "q": None}}, "must be an array"),
        ({"samples": {"p": np.full((1, 1, 1), "text")}}, "must be an array"),
        ({"samples": {"p": np.zeros((2, 1, 5)), "q": np.zeros((3, 1, 5))}}, r"samples/q has shape \(3, 1, 5\)"),
        ({"samples": {"p": np.zeros((2, 1, 5)), "q": np.zeros((2, 1, 4))}}, r"samples/q has shape \(2, 1, 4\)"),
        ({"samples": {"p": np.zeros((0, 1, 5))}}, "a chain and a sample"),
        ({"samples": {"p": np.zeros((2, 1, 0))}}, "a chain and a sample"),
    ],
)
def test_samples_that_disagree_are_refused(data, says):
    """Samples are arrays `(nchain, dim, nsamples)` that agree on the first axis and the last: else a ValueError."""
    with pytest.raises(EpochMismatch, match=says) as caught:
        prepare(data, save_stats=True)
    assert isinstance(caught.value, ValueError)


def test_samples_without_dimensions_are_samples():
    """A name may have dim 0, and NaN is data."""
    data = {"samples": {"p": np.full((2, 1, 3), np.nan), "none": np.zeros((2, 0, 3))}}
    assert prepare(data, save_stats=True).kind.shapes == {"p": (1, "<f8"), "none": (0, "<f8")}


def test_what_cannot_be_stored_is_refused_by_its_path():
    """The path of the item is in the message."""
    with pytest.raises(NotStorable, match=r"^sampling/f: "):
        prepare({"samples": samples(), "sampling": {"f": print}}, save_stats=True)


# ---- owning ----------------------------------------------------------------------------------------------------------


@given(storable.EPOCHS, st.booleans())
@settings(max_examples=150)
def test_what_is_owned_is_what_was_given(others, copy):
    """An epoch of any content, taken over by copy or by reference, is the same dict when it is put together."""
    epoch = {**others, "samples": samples()}
    held = own(epoch, copy=copy)
    assert all(array.flags.c_contiguous for array in held.arrays())
    assert held.kind.nbytes == sum(array.nbytes for array in held.arrays())
    storable.assert_same(restore(held.layout.items, held.arrays()), epoch)


@pytest.mark.parametrize("nbytes", [1, 1000, 100_000, 1 << 20])
def test_a_copy_can_be_changed_by_nobody_else(nbytes):
    """After a copy the caller may do what it likes with its arrays."""
    data = np.ones(nbytes, "u1")
    frozen = data.view()
    frozen.flags.writeable = False
    held = own({"samples": samples(), "a": data, "frozen": frozen})
    data[...] = 7
    got = restore(held.layout.items, held.arrays())
    assert (got["a"] == 1).all()
    assert (got["frozen"] == 1).all()


def test_arrays_that_are_given_away_are_kept_by_reference():
    """Without a copy, arrays that lie as they will on disk stay where they are, and others are copied."""
    p, turned = samples()["p"], np.zeros((3, 4)).T
    held = own({"samples": {"p": p}, "turned": turned}, copy=False)
    arrays = held.arrays()
    assert arrays[0] is p
    assert not np.shares_memory(arrays[1], turned)


def test_bytes_and_text_are_not_copied():
    """What nobody can change needs no copy."""
    data = b"x" * 100_000
    held = own({"samples": samples(), "data": data})
    assert np.shares_memory(held.array(1), np.frombuffer(data, "u1"))


@pytest.mark.parametrize("kind", ["array that owns its memory", "array in a bytearray"])
def test_memory_that_is_only_read_through_this_array_is_copied(kind):
    """A read-only array whose memory somebody else may write to is copied."""
    memory = bytearray(80) if kind.endswith("bytearray") else np.zeros(10)
    array = np.frombuffer(memory) if isinstance(memory, bytearray) else memory
    array.flags.writeable = False
    held = own({"samples": samples(), "a": array})
    assert not np.shares_memory(held.array(1), array)


def test_notes_in_a_dtype_do_no_harm():
    """An array whose dtype has notes of h5py's in it, or is aligned, is copied as any other."""
    noted = np.zeros(3, np.dtype([("a", h5py.string_dtype("utf-8", 3)), ("b", "f8")], align=True))
    noted["b"] = [1, 2, 3]
    held = own({"samples": samples(), "a": noted})
    assert held.array(1)["b"].tolist() == [1, 2, 3]


def test_large_copies_go_into_memory_that_is_used_again():
    """The memory of an epoch comes back once nobody looks into it: not the writer, not a reader."""
    buffers = Buffers(1 << 30)
    held = own({"samples": {"p": np.ones((4, 5, 10_000))}}, buffers=buffers)
    at = held.array(0).__array_interface__["data"]
    view = held.array(0)[1:, 2]
    del held
    other = own({"samples": {"p": np.zeros((4, 5, 10_000))}}, buffers=buffers)
    assert other.array(0).__array_interface__["data"] != at
    assert (view == 1).all()
    del view
    again = own({"samples": {"p": np.zeros((4, 5, 10_000))}}, buffers=buffers)
    assert again.array(0).__array_interface__["data"] == at


class DeviceArray:
    """An array as JAX's are to us."""

    def __init__(self, array, *, platform="gpu", ready=True):
        self._array = array
        self.shape, self.dtype, self.nbytes = array.shape, array.dtype, array.nbytes
        self.fetched = 0
        self.copies = []
        self._ready = ready
        self._platform = platform

    def is_ready(self):
        return self._ready

    def is_deleted(self):
        return False

    def devices(self):
        return [types.SimpleNamespace(platform=self._platform)]

    def copy(self):
        self.copies.append(DeviceArray(self._array.copy(), platform=self._platform))
        return self.copies[-1]

    def __array__(self, dtype=None, copy=None):
        self.fetched += 1
        return self._array


def device_epoch(**options):
    leaf = DeviceArray(np.ones((3, 2, 5)), **options)
    return leaf, {"samples": {"p": leaf}}


def test_an_array_on_a_device_is_copied_there():
    """An array on an accelerator is copied on it, so that it can be donated, and fetched later, once."""
    leaf, epoch = device_epoch()
    held = own(epoch)
    assert (leaf.fetched, len(leaf.copies), leaf.copies[0].fetched) == (0, 1, 0)
    assert held.arrays()[0] is held.arrays()[0]
    assert (leaf.fetched, leaf.copies[0].fetched) == (0, 1)


def test_an_array_on_a_device_that_is_given_away_is_not_copied():
    """Without a copy, the device's array itself is kept, until somebody needs its numbers."""
    leaf, epoch = device_epoch()
    held = own(epoch, copy=False)
    assert (leaf.fetched, leaf.copies) == (0, [])
    assert held.array(0).shape == (3, 2, 5)


def test_an_array_that_is_not_computed_yet_is_not_waited_for():
    """An array on the CPU that isn't ready is copied where it is."""
    leaf, epoch = device_epoch(platform="cpu", ready=False)
    own(epoch)
    assert (leaf.fetched, len(leaf.copies)) == (0, 1)


def test_an_array_that_is_ready_on_the_cpu_is_seen_at_once():
    """A view is taken, and copied only if its memory could change."""
    leaf, epoch = device_epoch(platform="cpu")
    held = own(epoch)
    assert (leaf.fetched, leaf.copies) == (1, [])
    assert not np.shares_memory(held.array(0), leaf._array)


def test_an_array_of_an_unknown_kind_is_fetched_at_once():
    """An array that doesn't tell whether it is ready is read while it is handed over."""

    class Other:
        def __init__(self, array):
            self.array = array
            self.shape, self.dtype, self.nbytes = array.shape, array.dtype, array.nbytes

        def __array__(self, dtype=None, copy=None):
            return self.array

    leaf = Other(np.ones((3, 2, 5)))
    held = own({"samples": {"p": leaf}})
    leaf.array[...] = 7
    assert (held.array(0) == 1).all()


# ---- cutting ---------------------------------------------------------------------------------------------------------


@given(storable.EPOCHS, st.integers(0, 4))
@settings(max_examples=50)
def test_cutting_takes_the_first_samples_alone(others, cut):
    """All samples lose their first ones, and everything else stays as it is."""
    epoch = {**others, "samples": samples() | {"q": np.arange(15).reshape(3, 1, 5)}, "covs": np.zeros((3, 2, 5))}
    held = own(epoch)
    layout, arrays = cut_samples(held.layout, held.arrays(), cut)
    expected = {**epoch, "samples": {name: array[:, :, cut:] for name, array in epoch["samples"].items()}}
    storable.assert_same(restore(layout.items, arrays), expected)


def test_cutting_nothing_copies_nothing():
    """An epoch that isn't cut keeps its layout and its arrays."""
    held = own({"samples": samples()})
    layout, arrays = cut_samples(held.layout, held.arrays(), 0)
    assert layout is held.layout
    assert arrays[0] is held.array(0)


def test_the_shapes_of_a_layout_are_those_of_the_epoch():
    """What is known of an epoch that was handed over is known of one on disk."""
    prepared = prepare({"samples": samples() | {"q": np.zeros((3, 7, 5), "i2")}, "x": 1}, save_stats=True)
    held = prepared.own(Buffers(0), copy=True)
    assert isinstance(held, Held)
    assert sample_shapes(held.layout) == (prepared.kind.nchain, prepared.kind.shapes)


def test_a_layout_without_samples_has_no_chains():
    """A dict of something else has no chains."""
    assert sample_shapes(layout_of(encode_items([]))) == (0, {})


# ---- as an object ----------------------------------------------------------------------------------------------------


class Given:
    def __init__(self, data):
        self.data = data

    def to_backend(self, burn, stats):
        raise NotImplementedError


@dataclasses.dataclass
class State:
    p: object
    ll: object


class OfJexplore(Given):
    """As jexplore's epochs are: made from the state's names, and the covariances."""

    statecls = State


DATA = {
    "samples": samples() | {"ll": np.zeros((3, 1, 5)), "x": np.zeros((3, 1, 5))},
    "covs": np.eye(2),
    "class": "no.Class",
}


def test_a_class_that_is_handed_is_used():
    """`eclass` is made from the dict, whatever class that names."""
    assert to_epoch(DATA, Given, None, ()).data == DATA


def test_a_class_of_jexplores_is_made_from_its_state():
    """It gets the samples that its state has, by name, and the covariances; nothing else."""
    assert set(to_epoch(DATA, OfJexplore, None, ()).data) == {"p", "ll", "covs"}
    assert set(to_epoch({"samples": samples()}, OfJexplore, None, ()).data) == {"p"}


def test_only_some_samples_can_be_asked_for():
    """`pars` names the samples that the epoch gets, in that order; the dict stays as it is."""
    epoch = to_epoch(DATA, Epoch, ["x", "p"], ())
    assert list(epoch.samples) == ["x", "p"]
    assert "ll" in DATA["samples"]


def test_samples_that_are_not_there_are_a_key_error():
    """The message names them, and those there are."""
    with pytest.raises(KeyError, match="no nope; it has p, ll, x"):
        to_epoch(DATA, Epoch, ["p", "nope"], ())


# ---- which class -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Epoch, Walk, Walk.Inner, OfJexplore])
def test_a_class_that_is_imported_is_found(kind):
    """A class of this process is found by its dotted name, also one within another."""
    assert named_class(f"{kind.__module__}.{kind.__qualname__}", ()) is kind


def test_no_name_is_our_own_class():
    """An epoch that names no class is an `Epoch`."""
    assert named_class(None, ()) is Epoch


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "builtins.dict",
        "posterity._ingest.prepare.Held",
        "posterity.epoch.Epoch.to_backend",
        "posterity.epoch",
        "no.such.Class",
        "Epoch",
        "",
        "..",
        ".Epoch",
        "posterity.epoch.",
        3,
        b"posterity.epoch.Epoch",
        ["posterity.epoch.Epoch"],
    ],
)
def test_a_name_that_is_no_epoch_class_is_refused(name):
    """What isn't an epoch class that is imported is never used; the message says what to do."""
    with pytest.raises(UntrustedClass, match=r"pass it as eclass, or name it in trusted_classes"):
        named_class(name, ())


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module that could be imported, and says so when it is."""
    (tmp_path / "sampler_of_a_test.py").write_text(
        "from posterity import Epoch\nclass Mine(Epoch):\n    class Inner(Epoch):\n        pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "sampler_of_a_test"
    sys.modules.pop("sampler_of_a_test", None)


def test_a_class_is_not_imported_because_a_file_names_it(module):
    """A class that could be imported isn't, unless it is trusted by its full name."""
    with pytest.raises(UntrustedClass, match=f"'{module}.Mine'"):
        named_class(f"{module}.Mine", (f"{module}.Other",))
    assert module not in sys.modules
    assert named_class(f"{module}.Mine", (f"{module}.Mine",)).__name__ == "Mine"


def test_a_class_within_a_class_can_be_trusted(module):
    """The module of a trusted class is found, however deep in it the class is."""
    assert named_class(f"{module}.Mine.Inner", (f"{module}.Mine.Inner",)).__name__ == "Inner"


def test_a_trusted_class_that_is_not_there_is_refused(module):
    """Trusting a name that can't be found is an error as for any other."""
    for name in (f"{module}.Nope", "no_such_module_at_all.Class"):
        with pytest.raises(UntrustedClass):
            named_class(name, (name,))


def test_a_trusted_module_that_lacks_something_says_so(module, tmp_path):
    """An error within a trusted module isn't hidden."""
    (tmp_path / f"{module}.py").write_text("import no_such_module_at_all")
    with pytest.raises(ModuleNotFoundError, match="no_such_module_at_all"):
        named_class(f"{module}.Mine", (f"{module}.Mine",))


def test_looking_for_a_class_runs_no_code(monkeypatch):
    """A module or a class that computes its attributes, by importing say, isn't asked for them."""
    asked = []

    class Lazy(type):
        def __getattr__(cls, name):
            asked.append(name)
            return Epoch

    module = types.ModuleType("lazy_module_of_a_test")
    module.__getattr__ = lambda name: asked.append(name) or Epoch
    module.Class = Lazy("Class", (), {})
    monkeypatch.setitem(sys.modules, "lazy_module_of_a_test", module)
    for name in ("lazy_module_of_a_test.Epoch", "lazy_module_of_a_test.Class.Epoch"):
        with pytest.raises(UntrustedClass):
            named_class(name, ())
    assert asked == []
