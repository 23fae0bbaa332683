"""Epochs that are built alike are recognised; those that aren't never are taken for such."""

import numpy as np
import pytest
from hypothesis import given

from posterity._format.flatten import flatten, restore
from posterity._format.schema import encode_items
from posterity._ingest.prepare import prepare
from posterity._ingest.template import Kinds
from storable import EPOCHS, assert_same, to_memory


def epoch(**more):
    return {"samples": {"p": np.arange(24.0).reshape(2, 3, 4)}, **more}


def learned(data):
    """What knows the kind of an epoch: it was seen twice."""
    kinds = Kinds()
    for _ in range(2):
        prepare(data, save_stats=True, kinds=kinds)
    assert kinds.recognise(data) is not None
    return kinds


def test_a_kind_is_learned_when_it_comes_twice():
    """The first one alone isn't worth it: a sampler may hand over epochs that all differ in length."""
    kinds = Kinds()
    prepare(epoch(), save_stats=True, kinds=kinds)
    assert kinds.recognise(epoch()) is None
    prepare(epoch(), save_stats=True, kinds=kinds)
    assert kinds.recognise(epoch()) is not None


def test_kinds_that_take_turns_are_all_known():
    """A sampler that adapts in every second epoch hands over two kinds; the latest four are known."""
    kinds = Kinds()
    many = [epoch(x=np.zeros(n)) for n in range(5)]
    for data in many:
        for _ in range(2):
            prepare(data, save_stats=True, kinds=kinds)
    assert [kinds.recognise(data) is not None for data in many] == [False, True, True, True, True]


def test_a_recognised_epoch_has_its_own_numbers():
    """Its kind is shared, its arrays aren't."""
    before = epoch(x=1.5, y=np.float32(2), n=3, flag=True, text="abc", listed=[1, 2], nothing=None)
    kinds = learned(before)
    after = epoch(x=2.5, y=np.float32(4), n=5, flag=False, text="abc", listed=[3, 4], nothing=None)
    after["samples"]["p"] = after["samples"]["p"] + 1
    first, second = (prepare(data, save_stats=True, kinds=kinds) for data in (before, after))
    assert first.kind is second.kind
    for leaf, other in zip(second.leaves, flatten(after)[1], strict=True):
        np.testing.assert_array_equal(leaf, other)


OTHERS = {
    "a longer array": epoch(x=np.zeros(4), s="abc", f=1.0, i=1, d={"a": 1.0}, t=(1, 2), n=None),
    "another dtype": epoch(x=np.zeros(3, "f4"), s="abc", f=1.0, i=1, d={"a": 1.0}, t=(1, 2), n=None),
    "the other byte order": epoch(x=np.zeros(3, ">f8"), s="abc", f=1.0, i=1, d={"a": 1.0}, t=(1, 2), n=None),
    "a list in place of an array": epoch(x=[0.0, 0.0, 0.0], s="abc", f=1.0, i=1, d={"a": 1.0}, t=(1, 2), n=None),
    "a masked array": epoch(x=np.ma.zeros(3), s="abc", f=1.0, i=1, d={"a": 1.0}, t=(1, 2), n=None),
    "another text": epoch(x=np.zeros(3), s="abd", f=1.0, i=1, d={"a": 1.0}, t=(1, 2), n=None),
    "a number in place of a text": epoch(x=np.zeros(3), s=1, f=1.0, i=1, d={"a": 1.0}, t=(1, 2), n=None),
    "an int in place of a float": epoch(x=np.zeros(3), s="abc", f=1, i=1, d={"a": 1.0}, t=(1, 2), n=None),
    "a bool in place of an int": epoch(x=np.zeros(3), s="abc", f=1.0, i=True, d={"a": 1.0}, t=(1, 2), n=None),
    "an int of another size": epoch(x=np.zeros(3), s="abc", f=1.0, i=2**70, d={"a": 1.0}, t=(1, 2), n=None),
    "another name": epoch(x=np.zeros(3), s="abc", f=1.0, i=1, d={"b": 1.0}, t=(1, 2), n=None),
    "one name more": epoch(x=np.zeros(3), s="abc", f=1.0, i=1, d={"a": 1.0, "b": 1.0}, t=(1, 2), n=None),
    "one name less": epoch(x=np.zeros(3), s="abc", f=1.0, i=1, d={}, t=(1, 2), n=None),
    "another order": epoch(s="abc", x=np.zeros(3), f=1.0, i=1, d={"a": 1.0}, t=(1, 2), n=None),
    "a list in place of a tuple": epoch(x=np.zeros(3), s="abc", f=1.0, i=1, d={"a": 1.0}, t=[1, 2], n=None),
    "a longer tuple": epoch(x=np.zeros(3), s="abc", f=1.0, i=1, d={"a": 1.0}, t=(1, 2, 3), n=None),
    "something in place of nothing": epoch(x=np.zeros(3), s="abc", f=1.0, i=1, d={"a": 1.0}, t=(1, 2), n=0),
    "what can't be stored": epoch(x=np.zeros(3), s="abc", f=1.0, i=1, d={"a": 1.0}, t=(1, print), n=None),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_what_is_built_in_another_way_is_not_recognised(other):
    """Whatever would be stored in another way takes the long way, and gets its errors there."""
    kinds = learned(epoch(x=np.zeros(3), s="abc", f=1.0, i=1, d={"a": 1.0}, t=(1, 2), n=None))
    assert kinds.recognise(other) is None


@given(EPOCHS, EPOCHS)
def test_a_recognised_epoch_is_what_the_long_way_makes_of_it(one, other):
    """Recognised or not: the same items, the same arrays, bit for bit."""
    kinds = Kinds()
    for more in (one, one, other, one, other):
        data = {**more, "samples": epoch()["samples"]}
        prepared = prepare(data, save_stats=True, kinds=kinds)
        items, leaves = flatten(data)
        assert encode_items(prepared.kind.items) == encode_items(items)
        made = (restore(items, [to_memory(leaf) for leaf in given]) for given in (prepared.leaves, leaves))
        assert_same(*made)
