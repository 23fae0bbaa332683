"""A real sampler, killed at random moments again and again: what it left is what it had handed over, and goes on."""

import hashlib
import json
import random
import subprocess
import sys
import time

import numpy as np
import pytest

from posterity import DefaultBackend, verify

SAMPLER = """
import hashlib, json, sys
import emcee, numpy as np
from posterity import DefaultBackend

outdir, told, epochs_per_file, inmem_epochs = sys.argv[1], open(sys.argv[2], "a"), int(sys.argv[3]), int(sys.argv[4])


def tell(**what):
    told.write(json.dumps(what) + "\\n")
    told.flush()


with DefaultBackend(outdir=outdir, epochs_per_file=epochs_per_file, inmem_epochs=inmem_epochs) as backend:
    index = backend.status.epochs
    tell(began=index)
    walkers = backend.load().last["p"] if index else np.random.default_rng(1).normal(size=(6, 2))
    sampler = emcee.EnsembleSampler(6, 2, lambda p: -0.5 * np.sum(p**2, axis=1), vectorize=True)
    while index < 300:
        walkers = sampler.run_mcmc(walkers, 20).coords
        p = np.ascontiguousarray(sampler.get_chain().transpose(1, 2, 0))
        tell(index=index, sum=hashlib.sha256(p.tobytes()).hexdigest())  # before it is handed over
        backend.ingest({"samples": {"p": p}})
        sampler.reset()
        index += 1
        if index % 5 == 0:
            backend.flush()
            tell(durable=index)
"""


@pytest.mark.timeout(180)
@pytest.mark.parametrize(("epochs_per_file", "inmem_epochs"), [(1, 0), (4, 2), (50, 0)])
def test_a_sampler_that_is_killed_again_and_again(tmp_path, epochs_per_file, inmem_epochs):
    """After each kill the run is a prefix of what was handed over, without a gap or a double, and all that was durable."""
    seed = random.randrange(1 << 30)
    rng = random.Random(seed)
    outdir, told = tmp_path / "run", tmp_path / "told"
    command = [sys.executable, "-c", SAMPLER, str(outdir), str(told), str(epochs_per_file), str(inmem_epochs)]
    for _ in range(5):
        told.touch()
        before = told.stat().st_size
        sampler = subprocess.Popen(command, stderr=subprocess.PIPE)
        wanted = before + rng.randint(1, 6000)  # bytes of what it tells: some moment of its work
        while told.stat().st_size < wanted and sampler.poll() is None:
            time.sleep(0.002 * rng.random())
        sampler.kill()
        _, errors = sampler.communicate()
        assert sampler.returncode == -9, (seed, errors.decode())
        check(outdir, told, seed)


def check(outdir, told, seed):
    lines = [json.loads(line) for line in told.read_text().splitlines() if line.endswith("}")]
    durable = max((line["durable"] for line in lines if "durable" in line), default=0)
    if not outdir.exists():
        assert durable == 0, seed
        return
    with DefaultBackend(outdir=outdir) as backend:
        nepochs = backend.status.epochs
        assert nepochs >= durable, seed
        sums = {line["index"]: line["sum"] for line in lines if "index" in line}  # the last one of each that was told
        for index in range(nepochs):
            assert sum_of(backend.get(index)["samples"]["p"]) == sums[index], (seed, index)
        if nepochs:
            assert backend.get_samples(verify=True)["p"].shape == (6, 2, 20 * nepochs), seed
    assert not nepochs or verify(outdir).is_good, seed


def sum_of(p):
    return hashlib.sha256(np.ascontiguousarray(p).tobytes()).hexdigest()
