"""Pytrees given back from samples: by what an epoch says about them, which may be a hostile file's."""

import numpy as np
import pytest

from posterity import Damaged, DefaultBackend, EpochMismatch, open_run
from posterity._samplers.jax.pytrees import Branch, Leaf, decode, encode, names_in, parameter_names, unravel
from posterity.pytrees import get_positions

TREE = Branch(
    "dict",
    (
        Branch("list", (Branch("tuple", (Leaf("p", "<f4", (2, 2)), Branch("none"))), Branch("tuple"), Branch("dict"))),
        Leaf("count", "<i4"),
        Leaf("p", "<f8", (), 4),
        Leaf("p", "|b1", (2,), 5),
    ),
    ("more", "count", "slope", 3),
)


def test_text_gives_the_structure_back():
    """What is encoded is decoded again, equal."""
    assert decode(encode(TREE)) == TREE
    assert names_in(TREE) == ["p", "count"]
    assert names_in(Branch("none")) == ["p"]


def test_each_leaf_is_where_it_was():
    """Containers, shapes, dtypes and numbers come back; the chains and the samples are the first two axes."""
    p = np.arange(3 * 7 * 5, dtype=np.float64).reshape(3, 7, 5)
    count = np.arange(15, dtype=np.int32).reshape(3, 1, 5) + 2**24 + 1
    tree = unravel(TREE, {"p": p, "count": count})
    assert list(tree) == ["more", "count", "slope", 3]
    matrix, nothing = tree["more"][0]
    assert (nothing, tree["more"][1:]) == (None, [(), {}])
    assert (matrix.shape, matrix.dtype) == ((3, 5, 2, 2), np.float32)
    np.testing.assert_array_equal(matrix[1, 4], p[1, :4, 4].reshape(2, 2))
    np.testing.assert_array_equal(tree["count"], count[:, 0])
    np.testing.assert_array_equal(tree["slope"], p[:, 4])
    np.testing.assert_array_equal(tree[3], np.moveaxis(p[:, 5:], 1, 2) != 0)
    assert tree[3].dtype == bool


def test_a_real_leaf_among_complex_ones():
    """It comes back as it was, without NumPy's warning about what is thrown away."""
    tree = Branch("list", (Leaf("p", "<c8"), Leaf("p", "<f4", (), 1)))
    both = unravel(tree, {"p": np.array([[[1 + 2j], [3]]], np.complex64)})
    assert (both[0].item(), both[1].item(), both[1].dtype) == (1 + 2j, 3, np.float32)


@pytest.mark.parametrize(
    ("tree", "names"),
    [
        (Leaf("p", "<f8"), ["p"]),
        (Leaf("p", "<f8", (2,)), ["p[0]", "p[1]"]),
        (Branch("tuple", (Leaf("p", "<f8"), Leaf("p", "<f8", (1, 2), 1))), ["p[0]", "p[1][0,0]", "p[1][0,1]"]),
        (Branch("dict", (Branch("dict", (Leaf("p", "<f8"),), ("b",)),), ("a",)), ["a.b"]),
        (TREE, [*(f"more[0][0][{i},{j}]" for i in (0, 1) for j in (0, 1)), "count", "slope", "3[0]", "3[1]"]),
    ],
)
def test_numbers_are_named_by_their_paths(tree, names):
    """In the order in which "p" has them."""
    assert parameter_names(tree) == names


def nested(depth):
    return '{"type":"branch","kind":"list","members":[' * depth + "]}" * depth


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "makes no sense"),
        ("[]", "makes no sense"),
        (nested(100_000), "makes no sense"),
        ('{"type":"leaf","name":"p","dtype":"<f8","shape":[-1]}', "shape"),
        ('{"type":"leaf","name":"p","dtype":"<f8","start":-1}', "start"),
        ('{"type":"leaf","name":"p","dtype":"|O"}', "plain bytes"),
        ('{"type":"leaf","name":"p","dtype":"<M8[s]"}', "no dtype of numbers"),
        ('{"type":"leaf","name":"p","dtype":"<f8","module":"os"}', "module"),
        ('{"type":"branch","kind":"set"}', "set"),
        ('{"type":"branch","kind":"none","members":[{"type":"branch","kind":"none"}]}', "None has no members"),
        ('{"type":"branch","kind":"dict","members":[{"type":"branch","kind":"none"}]}', "a key of its own"),
        (encode(Branch("list", (Leaf("p", "<f8", (9,)), Leaf("p", "<f8", (9,))))), "overlap"),
    ],
    ids=range(12),
)
def test_a_hostile_text_is_refused(text, said):
    """Whatever the file says: an error of ours, and no memory for more than it holds."""
    with pytest.raises(Damaged, match=said):
        decode(text)


def test_a_leaf_beyond_the_samples_is_damage():
    """A structure may say that there is more than there is."""
    with pytest.raises(Damaged, match="dim 2"):
        unravel(Leaf("p", "<f8", (3,)), {"p": np.ones((1, 2, 1))})


def test_a_run_without_pytrees_says_so(tmp_path):
    """A run that something else wrote has none, and an empty one has no epoch."""
    with DefaultBackend(outdir=tmp_path) as backend:
        with pytest.raises(IndexError):
            get_positions(backend)
        backend.ingest({"samples": {"p": np.ones((1, 2, 3))}})
    with open_run(tmp_path) as run, pytest.raises(EpochMismatch, match="run_kernel"):
        get_positions(run)


def test_a_burned_run_has_no_positions(tmp_path):
    """None, as from `get_samples`."""
    with DefaultBackend(outdir=tmp_path, burn=3) as backend:
        backend.ingest({"samples": {"p": np.ones((1, 2, 3))}, "pytrees": {"position": encode(Leaf("p", "<f8", (2,)))}})
        assert get_positions(backend) is None
