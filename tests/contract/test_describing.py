"""Metadata: given at opening, seen by every read, and there in a process that wasn't there when they were given."""

import subprocess
import sys

import pytest

from known import epoch_dict, run_of
from posterity import EpochMismatch, Parameter, open_run

RUN = run_of([4, 3, 5])
GIVEN = {
    "parameters": [Parameter("m1", "Mass", "Msun", "m_1"), "chi"],
    "chains": {"walker": 3},
    "attributes": {"note": "first", "n": 3},
}


async def write_run(driver, outdir, epochs=RUN, **options):
    """Write a run, and say what its metadata were."""
    async with await driver.open(outdir=outdir, **options) as backend:
        for epoch in epochs:
            await backend.ingest(epoch)
        return backend.metadata


def elsewhere(outdir):
    """The metadata of a run as another process sees them."""
    code = "import sys, posterity; print(repr(posterity.open_run(sys.argv[1]).metadata))"
    done = subprocess.run([sys.executable, "-c", code, outdir], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.strip()


async def test_they_are_seen_by_every_read(driver, outdir):
    """Before the first epoch and after it, by the backend, a snapshot, and a reader."""
    async with await driver.open(outdir=outdir, **GIVEN) as backend:
        found = backend.metadata
        assert found.parameters == {"p": (GIVEN["parameters"][0], Parameter("chi"))}
        assert (found.chains, found.attributes) == (GIVEN["chains"], GIVEN["attributes"])
        assert found.host
        assert found.versions
        assert found.started_at
        await backend.ingest(RUN[0])
        async with backend.snapshot() as snapshot:
            assert snapshot.metadata == found
            assert "p: m1, chi; 3 walker" in repr(snapshot)
        assert "p: m1, chi; 3 walker" in repr(backend)
        await backend.flush()
        with open_run(outdir) as run:
            assert run.metadata == run.asynchronous.metadata == found
    assert backend.metadata == found


async def test_they_are_there_in_a_fresh_process(driver, outdir):
    """As they were given."""
    found = await write_run(driver, outdir, **GIVEN)
    assert elsewhere(outdir) == repr(found)


async def test_a_run_goes_on_with_what_it_knows(driver, outdir):
    """Nothing has to be given again; the start, the host and the versions stay those of the beginning."""
    found = await write_run(driver, outdir, **GIVEN)
    assert await write_run(driver, outdir, [epoch_dict(12, 2)]) == found
    assert elsewhere(outdir) == repr(found)


async def test_a_run_takes_new_labels(driver, outdir):
    """Labels and attributes that are given later are added, and durable once flushed, without an epoch."""
    await write_run(driver, outdir, **GIVEN)
    new = {"parameters": [Parameter("m1", unit="kg"), "chi"], "attributes": {"note": "second"}}
    async with await driver.open(outdir=outdir, **new) as backend:
        found = backend.metadata
        await backend.flush()
        assert elsewhere(outdir) == repr(found)
    assert found.parameters["p"][0] == Parameter("m1", "Mass", "kg", "m_1")
    assert found.attributes == {"note": "second", "n": 3}


async def test_a_run_gets_names_later(driver, outdir):
    """Who didn't think of names at the beginning can give them to a run that is there."""
    await write_run(driver, outdir)
    found = await write_run(driver, outdir, [], **GIVEN)
    assert elsewhere(outdir) == repr(found)
    assert [each.name for each in found.parameters["p"]] == ["m1", "chi"]


@pytest.mark.parametrize("other", [{"parameters": ["chi", "m1"]}, {"chains": {"temperature": 3}}], ids=str)
async def test_names_and_layout_of_a_run_stay(driver, outdir, other):
    """Others are refused, and the run is left as it is."""
    found = await write_run(driver, outdir, **GIVEN)
    with pytest.raises(ValueError, match="was given; leave"):
        async with await driver.open(outdir=outdir, **other):
            pass
    assert await write_run(driver, outdir, []) == found


@pytest.mark.parametrize("other", [{"parameters": ["a"]}, {"chains": {"walker": 2, "temperature": 2}}], ids=str)
async def test_an_epoch_that_does_not_fit_is_refused(driver, outdir, other):
    """As long as there is none; nothing of it is handed over."""
    async with await driver.open(outdir=outdir, **other) as backend:
        with pytest.raises(EpochMismatch, match="open the backend with what fits"):
            await backend.ingest(RUN[0])
        assert backend.status.epochs == 0


async def test_a_reset_begins_anew(driver, outdir):
    """What was given at opening is given to the new run; what the old one knew beyond that is gone."""
    first = await write_run(driver, outdir, attributes={"old": 1})
    async with await driver.open(outdir=outdir, **GIVEN) as backend:
        assert backend.metadata.attributes == {"old": 1, **GIVEN["attributes"]}
        await backend.reset()
        found = backend.metadata
        assert found.attributes == GIVEN["attributes"]
        assert found.started_at > first.started_at
        await backend.ingest(RUN[0])
    assert elsewhere(outdir) == repr(found)


async def test_after_a_reset_chains_may_be_others(driver, outdir):
    """The layout goes with the run that had it, if nobody gives it at opening."""
    await write_run(driver, outdir, **GIVEN)
    async with await driver.open(outdir=outdir) as backend:
        await backend.reset()
        assert backend.metadata.chains == {}
        await backend.ingest(epoch_dict(0, 5, nchain=5))


async def test_a_run_that_is_replaced_is_forgotten(driver, outdir):
    """With mode "w" nothing of the old one is left."""
    await write_run(driver, outdir, **GIVEN)
    found = await write_run(driver, outdir, mode="w", parameters=["a", "b"])
    assert found.attributes == {}
    assert elsewhere(outdir) == repr(found)


async def test_a_snapshot_stays_as_it_was(driver, outdir):
    """A reset changes nothing in one that was taken before."""
    async with await driver.open(outdir=outdir, **GIVEN) as backend:
        await backend.ingest(RUN[0])
        async with backend.snapshot() as snapshot:
            found = snapshot.metadata
            await backend.reset()
            assert snapshot.metadata is found
            assert backend.metadata is not found
