"""The faces of a run are alike: the same names, parameters and docstrings, but for what is listed here with its reason."""

import inspect
import re
import typing

import anyio
import numpy as np
import pytest

import posterity
from known import numbers, run_of
from posterity import AsyncBackend, AsyncRun, AsyncSnapshot, Closed, DefaultBackend, Promise, Run, Snapshot, State

PAIRS = [(DefaultBackend, AsyncBackend), (Snapshot, AsyncSnapshot), (Run, AsyncRun)]
IDS = [plain.__name__ for plain, _ in PAIRS]

RENAMED = {
    "close": "aclose",  # what anyio and the standard library call what is awaited
    "asynchronous": "blocking",  # each gives the other
    "__enter__": "__aenter__",
    "__exit__": "__aexit__",
}
NOT_AWAITED = {
    "flatten_samples": "works on arrays that the caller has",
    "ingest_nowait": "never waits",
    "snapshot": "gives what can be awaited, or entered with `async with`",
    "updates": "gives an iterator; its steps are awaited",
    "release": "waits for nothing",
}
DOCUMENTED_ALONE = {
    "blocking": "says the same of the other face",
    "snapshot": "says how it is awaited",
}
OF_SNAPSHOT_ITSELF = {"__aenter__", "__aexit__"}  # a plain snapshot may be let go by `async with` too


def public(face):
    """The names of what a face can do."""
    return {name for name in dir(face) if not name.startswith("_") or name in {*RENAMED, *RENAMED.values()}}


def own_names(plain):
    """Its public names, without those that only `async with` on a plain snapshot needs."""
    return public(plain) - (OF_SNAPSHOT_ITSELF if plain is Snapshot else set())


def twins():
    """Each public name of the blocking faces, with both things that have it."""
    return [
        pytest.param(
            inspect.getattr_static(plain, name),
            inspect.getattr_static(awaited, RENAMED.get(name, name)),
            id=f"{awaited.__name__}.{RENAMED.get(name, name)}",
        )
        for plain, awaited in PAIRS
        for name in sorted(own_names(plain))
    ]


def function_of(found):
    return found.fget if isinstance(found, property) else getattr(found, "__func__", found)


def plainly(annotation):
    """An annotation as text, with the names of the blocking faces."""
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    text = re.sub(r"\b(Async|Asked)(?=[A-Z])", "", re.sub(r"\bposterity\.(\w+\.)+", "", text))
    return re.sub(r"[~+](?=EpochT)", "", text.replace("DefaultBackend", "Backend").replace("E_co", "EpochT"))


@pytest.mark.parametrize(("plain", "awaited"), PAIRS, ids=IDS)
def test_the_faces_have_the_same_names(plain, awaited):
    """What one face can do the other can, under the same name, or under the one that is listed."""
    names = {RENAMED.get(name, name) for name in own_names(plain)}
    if plain is Snapshot:
        names.add("registry")  # an attribute there
    assert public(awaited) == names


@pytest.mark.parametrize(("plain", "awaited"), twins())
def test_the_faces_take_the_same_parameters(plain, awaited):
    """Names, kinds, defaults and annotations of the parameters agree, and what is returned, but for the awaiting."""
    assert type(awaited) is type(plain)
    if function_of(plain).__name__ == "__exit__":
        return  # the protocol has its own
    ours, theirs = (inspect.signature(function_of(found)) for found in (plain, awaited))
    assert [*map(str, theirs.parameters)] == [*map(str, ours.parameters)]
    for name, parameter in ours.parameters.items():
        other = theirs.parameters[name]
        assert (other.kind, other.default) == (parameter.kind, parameter.default), name
        assert plainly(other.annotation) == plainly(parameter.annotation), name
    assert plainly(theirs.return_annotation) == plainly(ours.return_annotation)


@pytest.mark.parametrize(("plain", "awaited"), [(face, twin) for face, twin in PAIRS], ids=IDS)
def test_they_are_made_alike(plain, awaited):
    """The constructors take the same, but for those that users don't call."""
    if plain is DefaultBackend:
        assert inspect.signature(awaited) == inspect.signature(plain)
    else:
        assert next(iter(inspect.signature(awaited).parameters)) == plain.__name__.lower()


@pytest.mark.parametrize(("plain", "awaited"), twins())
def test_every_method_is_awaited_unless_it_is_listed(plain, awaited):
    """A method of the awaited face is a coroutine function, unless it is listed as one that waits for nothing."""
    if isinstance(plain, property):
        return
    name = function_of(plain).__name__
    assert inspect.iscoroutinefunction(function_of(awaited)) is (name not in NOT_AWAITED)
    assert not inspect.iscoroutinefunction(function_of(plain))


def found_in(path, awaited):
    """What a docstring refers to, as `Class.name` or `posterity.name`."""
    first, _, name = path.partition(".")
    return getattr(posterity, name) if first == "posterity" else inspect.getattr_static(getattr(posterity, first), name)


@pytest.mark.parametrize(("plain", "awaited"), twins())
def test_every_docstring_is_the_twins_or_refers_to_it(plain, awaited):
    """Who reads the awaited face's docstring is led to the one of the twin, where all is said."""
    ours, theirs = function_of(plain), function_of(awaited)
    if ours.__name__.startswith("__"):
        return  # a protocol's method does what its name says
    assert inspect.getdoc(ours), "the twin has none"
    text = inspect.getdoc(theirs)
    if text == inspect.getdoc(ours):
        return
    if theirs.__name__ in DOCUMENTED_ALONE:
        assert text
        return
    path = re.match(r"See `([\w.]+)`", text)
    assert path, text
    said = function_of(found_in(path[1], awaited))
    assert inspect.getdoc(said)
    assert not inspect.getdoc(said).startswith("See `posterity"), "a reference to a reference"
    assert said.__name__ == ours.__name__


@pytest.mark.parametrize(("plain", "awaited"), PAIRS, ids=IDS)
def test_each_awaited_face_names_its_twin(plain, awaited):
    """The docstring of an awaited face says whose twin it is."""
    assert f"`{plain.__name__}`" in inspect.getdoc(awaited)


def test_receipts_are_of_both_faces():
    """What a receipt promises can be waited for and awaited; both faces give the same kind."""
    assert typing.get_type_hints(DefaultBackend.ingest_nowait) == typing.get_type_hints(AsyncBackend.ingest_nowait)
    assert {"wait", "done"} <= public(Promise)
    assert hasattr(Promise, "__await__")
    assert inspect.getdoc(Promise.wait)


# ---- one run, two faces ----------------------------------------------------------------------------------------------


async def test_the_blocking_face_of_an_awaited_run(tmp_path):
    """`AsyncBackend.blocking` is the same run: what one is given the other shows, and closing either closes it."""
    async with AsyncBackend(outdir=tmp_path) as backend:
        other = backend.blocking
        assert type(other) is DefaultBackend
        await backend.ingest(run_of([3])[0])
        other.ingest(run_of([2], start=3)[0])
        np.testing.assert_array_equal((await backend.get_samples())["p"], numbers(0, 5))
        np.testing.assert_array_equal((other.asynchronous.blocking.get_samples())["p"], numbers(0, 5))
        await anyio.to_thread.run_sync(other.close)
        assert backend.status.state is State.CLOSED
        with pytest.raises(Closed):
            await backend.ingest(run_of([1], start=5)[0])


async def test_the_awaited_face_of_a_blocking_run(tmp_path):
    """`DefaultBackend.asynchronous` is the same run: what one is given the other shows, and closing either closes it."""
    backend = await anyio.to_thread.run_sync(lambda: DefaultBackend(outdir=tmp_path, inmem_epochs=5))
    backend.ingest(run_of([3])[0])
    async with backend.asynchronous as other:
        assert type(other) is AsyncBackend
        await other.ingest(run_of([2], start=3)[0])
        np.testing.assert_array_equal(backend.get_samples()["p"], numbers(0, 5))
    assert backend.status.state is State.CLOSED
    with pytest.raises(Closed):
        backend.ingest(run_of([1], start=5)[0])
    with DefaultBackend(outdir=tmp_path) as backend:
        np.testing.assert_array_equal(backend.get_samples()["p"], numbers(0, 5))


async def test_a_face_that_is_left_over_keeps_the_run_open(tmp_path):
    """A face that nobody has any more closes the run only if it was the last one."""
    async with AsyncBackend(outdir=tmp_path) as backend:
        for _ in range(3):
            assert backend.blocking.asynchronous.status.state is State.RUNNING
        await backend.ingest(run_of([3])[0])
        assert backend.status.state is State.RUNNING


def test_an_awaited_run_that_is_not_open_yet_says_so(tmp_path):
    """Before it is entered the awaited face has its options, and refuses the rest with what to do."""
    backend = AsyncBackend(burn=7, outdir=tmp_path / "run")
    assert backend.burn == 7
    assert "not open yet" in repr(backend)
    for refused in (
        lambda: backend.blocking,
        lambda: backend.status,
        backend.updates,
        lambda: backend.ingest_nowait({}),
    ):
        with pytest.raises(Closed, match="async with"):
            refused()
    assert not (tmp_path / "run").exists()
