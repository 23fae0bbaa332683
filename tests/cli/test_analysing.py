"""`summary`, `plot`: numbers are arviz-stats', pictures are pictures."""

import numpy as np
import pytest
from arviz_stats.base import array_stats
from runs import draws, write_run

from posterity import DefaultBackend, Parameter, open_run
from posterity._analysis.components import components_of, read_each
from posterity._analysis.plots import autocorrelation
from posterity._cli.exit_codes import Refused
from posterity._cli.summary import chosen_chains
from posterity.plots import plot
from posterity.summaries import Summary, summarize

KINDS = ["trace", "rank", "autocorr", "pair"]


def test_summary_is_of_all_samples(cli, run):
    """Mean, sd, quantiles, ESS and R-hat are those of the whole array."""
    found = cli.json(Summary, "summary", run)
    assert (found.nchain, found.samples) == (4, 300)
    assert [row.name for row in found.rows] == ["p_0", "p_1", "ll"]
    p = draws(300)
    for i, row in enumerate(found.rows[:2]):
        array = p[:, i]
        assert row.mean == pytest.approx(array.mean())
        assert row.sd == pytest.approx(array.std(ddof=1))
        assert row.quantiles == pytest.approx(np.quantile(array, [0.05, 0.5, 0.95]))
        assert row.rhat == pytest.approx(array_stats.rhat(array, chain_axis=0, draw_axis=1))
        assert row.ess_bulk == pytest.approx(array_stats.ess(array, chain_axis=0, draw_axis=1))
        tail = array_stats.ess(array, chain_axis=0, draw_axis=1, method="tail", prob=(0.05, 0.95))
        assert row.ess_tail == pytest.approx(tail)


def test_summary_of_a_part(cli, run):
    """Burn, thin, names, chains and quantiles are applied."""
    found = cli.json(
        Summary, "summary", run, "--burn", 100, "--thin", 2, "--pars", "p_1", "--chains", "1:3", "--quantiles", 0.1, 0.9
    )
    (row,) = found.rows
    part = draws(300)[1:3, 1, 100::2]
    assert (found.nchain, found.samples, row.of, row.index) == (2, 100, "p", 1)
    assert row.mean == pytest.approx(part.mean())
    assert row.quantiles == pytest.approx(np.quantile(part, [0.1, 0.9]))


def test_summary_is_a_table(cli, tmp_path):
    """With the names and units that the run has."""
    write_run(tmp_path / "run", parameters=[Parameter("mass", unit="Msun"), "spin"])
    lines = cli("summary", tmp_path / "run").splitlines()
    assert lines[0].split() == [
        "parameter",
        "mean",
        "sd",
        "mcse",
        "5%",
        "50%",
        "95%",
        "ESS",
        "bulk",
        "ESS",
        "tail",
        "R-hat",
    ]
    assert [line.split()[0] for line in lines[1:4]] == ["mass", "spin", "ll"]
    assert "[Msun]" in lines[1]
    assert lines[4] == "4 chains of 300 samples, burn 0, thin 1"


def test_summary_answers_whether_it_is_enough(cli, run):
    """--rhat and --ess make the exit code an answer."""
    cli("summary", run, "--rhat", 1.2, "--ess", 100)
    cli("summary", run, "--ess", 1e6, code=1)
    cli("summary", run, "--rhat", 1.0001, code=1)


def test_what_cant_be_told_is_not_a_number(cli, tmp_path):
    """Constants and NaN have no R-hat, which isn't fine for anybody who asks; nobody is warned by NumPy."""
    with DefaultBackend(outdir=tmp_path / "run") as backend:
        p = draws(50)
        p[:, 0] = 3.0
        p[0, 1, 7] = np.nan
        backend.ingest({"samples": {"p": p, "flag": p[:, :1] > 0, "z": p[:, :1] * 1j}})
    found = cli.json(dict, "summary", tmp_path / "run", "--rhat", 1.5, code=1)
    constant, with_nan, flag = found["rows"]
    assert (constant["mean"], constant["sd"], constant["rhat"]) == (3.0, 0.0, None)
    assert (with_nan["mean"], with_nan["rhat"]) == (None, None)
    assert flag["name"] == "flag"  # and "z" isn't real
    assert "-" in cli("summary", tmp_path / "run")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--pars", "q"], "there are no samples 'q'"),
        (["--pars", "mas"], "did you mean 'mass'?"),
        (["--burn", 1000], "nothing is left"),
        (["--burn", -1], "--burn"),
        (["--thin", 0], "--thin"),
        (["--chains", "7:"], "none of them was chosen"),
        (["--chains", "all"], "--chains must be like"),
        (["--quantiles", 2], "--quantiles"),
    ],
)
def test_what_makes_no_sense_ends_with_2(cli, tmp_path, words, told):
    """And one line says why."""
    write_run(tmp_path / "run", nepochs=2, parameters=["mass", "spin"])
    cli("summary", tmp_path / "run", *words, code=2)
    assert told in cli.errors


def test_components_are_read_in_blocks(tmp_path, monkeypatch):
    """What is too much at once is read a few components at a time, compressed or not, with the same numbers."""
    monkeypatch.setattr("posterity._analysis.components._BLOCK_BYTES", 3 * 8 * 2 * 120)  # two of five
    p = draws(120, nchain=3, dim=5)
    for name, options in (("plain", {}), ("packed", {"compression": "gzip"})):
        with DefaultBackend(outdir=tmp_path / name, **options) as backend:
            for part in np.split(p, 4, axis=2):
                backend.ingest({"samples": {"p": part}})
        with open_run(tmp_path / name) as opened, opened.snapshot() as snapshot:
            each = [*read_each(snapshot, components_of(snapshot), burn=10, thin=3)]
            assert [component.index for component, _ in each] == [0, 1, 2, 3, 4]
            for component, array in each:
                np.testing.assert_array_equal(array, p[:, component.index, 10::3])
            with pytest.raises(IndexError, match="components 0 to 4"):
                snapshot.get_components("p", 3, 6)


def test_a_summary_of_a_run_that_is_in_memory(tmp_path):
    """A backend's own snapshot can be summed up, with what isn't on disk yet."""
    with DefaultBackend(outdir=tmp_path / "run", inmem_epochs=2) as backend:
        backend.ingest({"samples": {"p": draws(60)}})
        with backend.snapshot() as snapshot:
            found = summarize(snapshot)
    assert [row.mean for row in found.rows] == pytest.approx(draws(60).mean(axis=(0, 2)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("nchain", [1, 4, 30])
def test_each_parameter_has_its_title(tmp_path, kind, nchain):
    """In each kind of picture, of one chain, of few and of many."""
    with DefaultBackend(outdir=tmp_path / "run", parameters=[Parameter("m", latex="m_1", unit="kg"), "b"]) as backend:
        backend.ingest({"samples": {"p": draws(80, nchain=nchain)}})
        with backend.snapshot() as snapshot:
            figure = plot(snapshot, kind)
    words = [text for axes in figure.axes for text in (axes.get_title(), axes.get_xlabel(), axes.get_ylabel())]
    assert "$m_1$ [kg]" in words
    assert "b" in words


def test_a_picture_is_written(cli, run, tmp_path, monkeypatch):
    """Where it was asked for; or else in the current folder, named after its kind."""
    monkeypatch.chdir(tmp_path)
    assert cli("plot", run) == "wrote trace.png\n"
    assert (tmp_path / "trace.png").read_bytes().startswith(b"\x89PNG")
    cli("plot", run, "--kind", "rank", "-o", tmp_path / "chains.pdf")
    assert (tmp_path / "chains.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_finite_or_constant_is_drawn_too(tmp_path, kind):
    """A picture of a run that went wrong is wanted most."""
    with DefaultBackend(outdir=tmp_path / "run") as backend:
        p = draws(60, nchain=9, dim=3)
        p[:, 0] = 2.0
        p[2, 1, 30:] = np.inf
        p[:, 2] = np.nan
        backend.ingest({"samples": {"p": p}})
        with backend.snapshot() as snapshot:
            plot(snapshot, kind).savefig(tmp_path / "picture.svg")
    assert (tmp_path / "picture.svg").stat().st_size > 1000


def test_a_picture_of_many_parameters_says_that_it_is_of_the_first_few(tmp_path):
    """And --pars chooses others."""
    with DefaultBackend(outdir=tmp_path / "run") as backend:
        backend.ingest({"samples": {"p": draws(20, dim=40)}})
        with backend.snapshot() as snapshot:
            figure = plot(snapshot, "pair")
            assert "the first 6 of 40 parameters" in figure.get_suptitle()
            assert plot(snapshot, "pair", pars=["p_39"]).axes[0].get_xlabel() == "p_39"


def test_plot_refuses_what_it_cant_do(cli, run, tmp_path):
    """Another kind, another format: one line, exit code 2."""
    cli("plot", run, "--kind", "corner", code=2)
    assert "trace" in cli.errors
    cli("plot", run, "-o", tmp_path / "picture.xyz", code=2)
    assert "xyz" in cli.errors


def test_autocorrelation_is_the_textbooks():
    """Against the sum that defines it; a constant chain has none."""
    x = draws(40, nchain=2, dim=1)[:, 0]
    x[1] = 5.0
    found = autocorrelation(x)
    apart = x[0] - x[0].mean()
    expected = [np.sum(apart[: 40 - lag] * apart[lag:]) / np.sum(apart**2) for lag in range(40)]
    np.testing.assert_allclose(found[0], expected, atol=1e-12)
    assert np.isnan(found[1]).all()


@pytest.mark.parametrize(
    ("text", "expected"),
    [(None, [0, 1, 2, 3]), ("1", [1]), ("1:3", [1, 2]), (":2", [0, 1]), ("::2", [0, 2]), ("-1:", [3])],
)
def test_chains_are_chosen_as_in_python(text, expected):
    """A slice, or one number."""
    assert [0, 1, 2, 3][chosen_chains(text)] == expected


def test_chains_that_go_backwards_are_refused():
    with pytest.raises(Refused, match="step"):
        chosen_chains("::0")
