"""The web service of docs/examples, run as a process of its own and asked over a socket."""

import http.client
import io
import json
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import h5py
import numpy as np
import pytest

from posterity import DefaultBackend, open_run

pytestmark = pytest.mark.timeout(120)  # of which a start takes ten seconds on a machine that has much else to do
DOCS = Path(__file__).parents[2] / "docs"
SCRIPT = DOCS / "examples" / "web_service.py"
SMALL = {"dim": 2, "walkers": 8, "steps": 50}
ENDLESS = {**SMALL, "epochs": 20_000}
LARGE = {"dim": 20, "walkers": 400, "steps": 200, "epochs": 1}
READ = """
import sys
import numpy as np
from posterity import open_run

with open_run(sys.argv[1]) as run:
    np.savez(sys.argv[2], **run.get_samples(pars=["p", "lp"], verify=True))
"""


class Service:
    """The service as a process, and a client of it."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        command = [sys.executable, "-W", "error", str(SCRIPT), "--port", "0", "--folder", str(folder), *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.said = ""
        while "serving http" not in self.said:
            line = self.process.stdout.readline()
            assert line, f"it ended: {self.said}"
            self.said += line
        self.port = int(self.said.partition("http://127.0.0.1:")[2].partition("/")[0])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def end(self, number=signal.SIGTERM):
        """Send a signal, and wait for the end; gives the exit code."""
        self.process.send_signal(number)
        self.said += self.process.communicate(timeout=60)[0]
        return self.process.returncode

    @contextmanager
    def request(self, method, path, body=None, headers=()):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            sent = {"Content-Type": "application/json"} if body is not None else {}
            connection.request(method, path, body, {**sent, **dict(headers)})
            yield connection.getresponse()
        finally:
            connection.close()

    def ask(self, method, path, body=None, headers=()):
        """The status and the body of an answer."""
        if not (body is None or isinstance(body, (str, bytes))):
            body = json.dumps(body)
        with self.request(method, path, body, headers) as response:
            return response.status, response.read()

    def get(self, path):
        status, body = self.ask("GET", path)
        assert status == 200, body
        return json.loads(body)

    def post(self, path, body):
        status, answer = self.ask("POST", path, body)
        assert status in {200, 201}, answer
        return json.loads(answer)

    def samples(self, name, query=""):
        found = self.get(f"/runs/{name}/samples?{query}")
        return {key: np.array(value) for key, value in found.items()}

    @contextmanager
    def events(self, name):
        """An iterator over the events of a run: the kind, and what is said."""
        with self.request("GET", f"/runs/{name}/events") as response:
            assert response.status == 200
            assert response.headers["Content-Type"].startswith("text/event-stream")
            yield read_events(response)

    def wait_until(self, name, condition):
        """Ask about a run until it is there and a condition holds for what is answered."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            status, answer = self.ask("GET", f"/runs/{name}")
            if status == 200 and condition(found := json.loads(answer)):
                return found
            time.sleep(0.02)
        raise TimeoutError(f"run {name} is still {answer}")

    def wait_until_deaf(self):
        """Until no new connection is taken: the end has begun."""
        with suppress(ConnectionError):
            while True:
                socket.create_connection(("127.0.0.1", self.port), timeout=60).close()
                time.sleep(0.02)


def read_events(response):
    kind = None
    for line in response:
        field, _, value = line.decode().rstrip("\n").partition(": ")
        if field == "event":
            kind = value
        elif field == "data":
            yield kind, json.loads(value)


def read_in_fresh_process(folder, tmp_path):
    saved = tmp_path / "read.npz"
    subprocess.run([sys.executable, "-c", READ, str(folder), str(saved)], check=True, timeout=60)
    with np.load(saved) as found:
        return dict(found)


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """A service that many tests share; its run "done" is complete."""
    with Service(tmp_path_factory.mktemp("service") / "runs") as service:
        service.post("/runs", {"name": "done", **SMALL, "epochs": 4})
        service.wait_until("done", lambda run: run["state"] == "idle")
        yield service
        assert service.end() == 0
        assert "Traceback" not in service.said
        assert "Warning" not in service.said


def test_two_runs_are_streamed_and_read(tmp_path):
    """Two runs at once are streamed to their ends, and a fresh process finds the posteriors that the service gave."""
    with Service(tmp_path / "runs") as service:
        for name, model in (("a", "gaussian"), ("b", "rosenbrock")):
            began = service.post("/runs", {"name": name, "model": model, **SMALL, "epochs": 20})
            assert (began["name"], began["error"]) == (name, None)
        given = {}
        with service.events("a") as of_a, service.events("b") as of_b:
            for events in (of_a, of_b):
                *progress, (kind, last) = list(events)
                counts = [run["samples"] for _, run in progress]
                assert {kind for kind, _ in progress} <= {"progress"}
                assert counts == sorted(counts)
                assert (kind, last["state"], last["epochs"], last["samples"]) == ("end", "idle", 20, 1000)
        for name in ("a", "b"):
            given[name] = service.samples(name, "pars=p,lp")
        assert [run["name"] for run in service.get("/runs")["runs"]] == ["a", "b"]
        assert service.end() == 0
    for name in ("a", "b"):
        stored = read_in_fresh_process(tmp_path / "runs" / name, tmp_path)
        assert stored["p"].shape == (8, 2, 1000)
        for key in ("p", "lp"):
            np.testing.assert_array_equal(stored[key], given[name][key])


def test_sigterm_while_sampling_loses_nothing(tmp_path):
    """SIGTERM ends the service with 0, and its open stream with it; all that was reported is on disk."""
    with Service(tmp_path / "runs", "--grace-s", "1000") as service:
        service.post("/runs", {"name": "a", **ENDLESS})
        with service.events("a") as events:
            reported = next(event for event in events if event[1]["epochs"] >= 3)
            assert service.end() == 0
            kinds, runs = zip(reported, *events, strict=True)
        assert set(kinds) == {"progress"}  # and not "end": the run may be continued
        assert service.said.endswith("the service has ended\n")
        assert "Traceback" not in service.said
    stored = read_in_fresh_process(tmp_path / "runs" / "a", tmp_path)
    assert stored["p"].shape[2] >= runs[-1]["samples"] >= 150
    with h5py.File(tmp_path / "runs" / "a" / "epochs_1.h5") as file:
        assert len(file) >= min(runs[-1]["epochs"], 100)


def test_unread_download_does_not_hold_up_the_end(tmp_path):
    """At Ctrl-C a client that doesn't read its download is cut off; an impatient second Ctrl-C does no harm."""
    with Service(tmp_path / "runs") as service:
        service.post("/runs", {"name": "large", **LARGE})
        service.post("/runs", {"name": "a", **ENDLESS})
        service.wait_until("large", lambda run: run["state"] == "idle")
        reported = service.wait_until("a", lambda run: run["epochs"] >= 1)
        with service.request("GET", "/runs/large/samples?format=npy") as response:
            assert response.status == 200
            service.process.send_signal(signal.SIGINT)
            service.wait_until_deaf()
            assert service.end(signal.SIGINT) == 0
        assert "Traceback" not in service.said
    with open_run(tmp_path / "runs" / "a") as run:
        assert run.get_samples()["p"].shape[2] >= reported["samples"]


def test_restart_finds_and_continues(tmp_path):
    """After a restart a run is listed, read and continued: the chain is that of a run which was never stopped."""
    with Service(tmp_path / "runs") as service:
        service.post("/runs", {"name": "cut", **ENDLESS, "seed": 7})
        service.wait_until("cut", lambda run: run["epochs"] >= 2)
        assert service.end() == 0
    with Service(tmp_path / "runs") as service:
        [found] = service.get("/runs")["runs"]
        assert (found["name"], found["state"]) == ("cut", "idle")
        assert service.samples("cut")["p"].shape == (8, 2, found["samples"])
        assert service.post("/runs/cut/continue", {"epochs": 2})["error"] is None
        done = service.wait_until("cut", lambda run: run["state"] == "idle")
        assert (done["epochs"], done["samples"]) == (found["epochs"] + 2, found["samples"] + 100)
        service.post("/runs", {"name": "whole", **SMALL, "epochs": done["epochs"], "seed": 7})
        service.wait_until("whole", lambda run: run["state"] == "idle")
        cut, whole = service.samples("cut")["p"], service.samples("whole")["p"]
        np.testing.assert_array_equal(cut, whole[:, :, : cut.shape[2]])
        assert service.end() == 0


BAD = [
    ("POST", "/runs", {"name": "x", "dim": 1}, 400, "`int` >= 2 - at `$.dim`"),
    ("POST", "/runs", {"name": "x", "dim": 5, "walkers": 9}, 400, "10, got 9"),
    ("POST", "/runs", {"name": "x", "model": "cubic"}, 400, "cubic"),
    ("POST", "/runs", {"name": "x", "walker": 8}, 400, "unknown field `walker`"),
    ("POST", "/runs", {"name": "x", "walkers": "8"}, 400, "Expected `int`, got `str`"),
    ("POST", "/runs", {"name": "x", "dim": 20, "walkers": 1000, "steps": 10_000}, 413, "168.0 GB"),
    ("POST", "/runs", {}, 400, "missing required field `name`"),
    ("POST", "/runs", "{", 400, "truncated"),
    ("POST", "/runs", b"\xff", 400, "malformed"),
    ("POST", "/runs", " " * 100_000, 413, "at most"),
    ("POST", "/runs", {"name": "done"}, 409, "done"),
    ("POST", "/runs/none/continue", {}, 404, "no run 'none'"),
    ("POST", "/runs/none/stop", {}, 404, "no run 'none'"),
    ("POST", "/runs/none/burn", {"burn": 1}, 404, "no run 'none'"),
    ("POST", "/runs/done/burn", {"burn": 10_000}, 409, "200 samples"),
    ("POST", "/runs/done/burn", {"burn": -1}, 400, ">= 0"),
    ("GET", "/runs/none", None, 404, "no run 'none'"),
    ("GET", "/runs/none/events", None, 404, "no run 'none'"),
    ("GET", "/runs/done/samples?thin=0", None, 400, ">= 1"),
    ("GET", "/runs/done/samples?brun=1", None, 400, "unknown field `brun`"),
    ("GET", "/runs/done/samples?burn=many", None, 400, "$.burn"),
    ("GET", "/runs/done/samples?pars=q", None, 400, "it has p, lp"),
    ("GET", "/runs/done/samples?pars=p,lp&format=npy", None, 400, "one array"),
    ("GET", "/runs/done/samples?burn=200", None, 404, "nothing is left"),
    ("DELETE", "/runs/done", None, 405, "Method Not Allowed"),
]


@pytest.mark.parametrize(("method", "path", "body", "status", "message"), BAD)
def test_bad_requests(service, method, path, body, status, message):
    """What can't be done is answered with 4xx and a message that tells why, and changes nothing."""
    answered, answer = service.ask(method, path, body)
    assert answered == status, answer
    assert message in json.loads(answer)["error"]
    assert [(run["name"], run["samples"]) for run in service.get("/runs")["runs"] if run["name"] in {"x", "done"}] == [
        ("done", 200)
    ]


@pytest.mark.parametrize("name", ["..", ".", "../x", "/tmp/x", "a/b", "a\\b", ".x", "a\n", "a\0", "A", "", "x" * 65])
def test_no_run_starts_outside(service, name):
    """A name that isn't a plain one is refused, and no folder is made for it."""
    before = set(service.folder.parent.rglob("*"))
    status, answer = service.ask("POST", "/runs", {"name": name})
    assert status == 400
    assert "a name has" in json.loads(answer)["error"]
    assert set(service.folder.parent.rglob("*")) == before


@pytest.mark.parametrize("name", ["..", "../x", ".", ".x", "A"])
def test_no_run_outside_is_read(service, name):
    """A run that lies elsewhere, or where none is started, isn't reached by any way of writing its path."""
    with DefaultBackend(outdir=service.folder / name) as backend:
        backend.ingest({"samples": {"p": np.zeros((2, 1, 3))}})
    for way in (name, name.replace("/", "%2F"), "".join(f"%{byte:02X}" for byte in name.encode())):
        for part in ("", "/samples", "/events"):
            assert service.ask("GET", f"/runs/{way}{part}")[0] == 404
    assert name not in {run["name"] for run in service.get("/runs")["runs"]}


@pytest.mark.parametrize(
    ("headers", "status"),
    [({"Host": "elsewhere.example"}, 400), ({"Content-Type": "text/plain"}, 415), ({"Content-Type": ""}, 415)],
)
def test_other_pages_are_kept_out(service, headers, status):
    """A page of another site can neither reach the service by a name of its own nor post without being asked for leave."""
    assert service.ask("POST", "/runs/done/stop", "{}", headers)[0] == status
    assert service.ask("POST", "/runs/done/stop", "{}")[0] == 200


def test_forms_of_a_posterior(service):
    """Burn, thin, names and flattening are those of get_samples, as JSON and as a .npy file."""
    with open_run(service.folder / "done") as run:
        expected = run.get_samples(burn=10, thin=3, pars=["lp"], flatten=True)["lp"]
    found = service.samples("done", "burn=10&thin=3&pars=lp&flatten=true")
    assert list(found) == ["lp"]
    np.testing.assert_array_equal(found["lp"], expected)
    status, body = service.ask("GET", "/runs/done/samples?burn=10&thin=3&pars=lp&flatten=true&format=npy")
    assert status == 200
    np.testing.assert_array_equal(np.load(io.BytesIO(body)), expected)


def test_summary(service):
    """The summary has each parameter's mean and deviation as numpy gives them, R-hat and effective samples."""
    p = service.samples("done", "burn=50")["p"]
    found = service.get("/runs/done/summary?burn=50")
    np.testing.assert_allclose(found["mean"], p.mean(axis=(0, 2)))
    np.testing.assert_allclose(found["sd"], p.std(axis=(0, 2)))
    assert all(0 < ess < 8 * 150 for ess in found["ess"])
    assert len(found["rhat"]) == 2


def test_page(service):
    """The page takes nothing from elsewhere, and may not."""
    with service.request("GET", "/") as response:
        page, may = response.read().decode(), response.headers["Content-Security-Policy"]
    assert response.status == 200
    assert "EventSource" in page
    assert "default-src 'none'" in may
    assert "http" not in page
    assert " src=" not in page


def test_streams_of_two_clients(service):
    """Two clients watch one run, each with a stream of its own; the stream of one who leaves ends, the other goes on."""
    service.post("/runs", {"name": "watched", **ENDLESS})
    with service.events("watched") as stays:
        with service.events("watched") as leaves:
            seen = next(run for _, run in leaves if run["watchers"] == 2)
            later = next(run for _, run in stays if run["epochs"] > seen["epochs"])
        assert next(run for _, run in stays if run["watchers"] == 1)["epochs"] >= later["epochs"]
        stopped = service.post("/runs/watched/stop", {})
        kind, last = list(stays)[-1]
    assert (kind, last["epochs"], last["state"]) == ("end", stopped["epochs"], "idle")


def test_stop_answers_when_all_is_on_disk(service):
    """When stop has answered, the folder has all that was sampled, and nobody writes it; a second stop does no harm."""
    service.post("/runs", {"name": "stopped", **ENDLESS})
    reported = service.wait_until("stopped", lambda run: run["epochs"] >= 2)
    stopped = service.post("/runs/stopped/stop", {})
    assert (stopped["state"], stopped["queued_epochs"]) == ("idle", 0)
    assert service.samples("stopped")["p"].shape[2] == stopped["samples"]
    with open_run(service.folder / "stopped") as run:
        assert run.get_samples()["p"].shape[2] == stopped["samples"] >= reported["samples"]
    assert service.post("/runs/stopped/stop", {}) == stopped


def test_stop_within_an_epoch(service):
    """Stop doesn't wait for the end of a long epoch, and the steps that were made are kept."""
    service.post("/runs", {"name": "within", **SMALL, "steps": 10_000, "epochs": 100})
    assert 0 < service.post("/runs/within/stop", {})["samples"] < 10_000 * 100


def test_burn(service):
    """Burning works while a run is sampled and when it lies idle; it can't be lowered."""
    service.post("/runs", {"name": "burned", **ENDLESS})
    service.wait_until("burned", lambda run: run["samples"] >= 100)
    assert service.post("/runs/burned/burn", {"burn": 60})["burn"] == 60
    stopped = service.post("/runs/burned/stop", {})
    chain = service.samples("burned")["p"]
    burned = service.post("/runs/burned/burn", {"burn": 70})
    assert (burned["burn"], burned["samples"]) == (70, stopped["samples"] - 10)
    np.testing.assert_array_equal(service.samples("burned")["p"], chain[:, :, 10:])
    status, answer = service.ask("POST", "/runs/burned/burn", {"burn": 60})
    assert status == 409
    assert "70" in json.loads(answer)["error"]


def test_at_most_so_many_at_once(service):
    """One run more than may be sampled at once is refused, and may start when another has stopped."""
    for name in ("w1", "w2", "w3", "w4"):
        service.post("/runs", {"name": name, **ENDLESS})
    status, answer = service.ask("POST", "/runs", {"name": "w5", **SMALL})
    assert status == 429
    assert "stop one" in json.loads(answer)["error"]
    service.post("/runs/w4/stop", {})
    service.post("/runs", {"name": "w5", **ENDLESS})
    for name in ("w1", "w2", "w3", "w5"):
        service.post(f"/runs/{name}/stop", {})


def test_slow_clients_hold_nobody_up(service):
    """While one client doesn't read its download, nor another its events, a run goes on to its end."""
    service.post("/runs", {"name": "large", **LARGE})
    service.wait_until("large", lambda run: run["state"] == "idle")
    service.post("/runs", {"name": "goes-on", **SMALL, "epochs": 50})
    with (
        service.request("GET", "/runs/large/samples?format=npy") as download,
        service.request("GET", "/runs/goes-on/events") as events,
    ):
        assert (download.status, events.status) == (200, 200)
        assert service.wait_until("goes-on", lambda run: run["state"] == "idle")["epochs"] == 50
        assert len(download.read()) > 400 * 20 * 200 * 8


def test_large_answers_leave_the_loop_free(service):
    """While a large posterior is made into JSON, others wait for a small part of that time only."""
    service.post("/runs", {"name": "larger", **LARGE})
    service.wait_until("larger", lambda run: run["state"] == "idle")
    for _attempt in range(3):
        took_s = []

        def download(took_s=took_s):
            began = time.monotonic()
            service.ask("GET", "/runs/larger/samples")
            took_s.append(time.monotonic() - began)

        client = threading.Thread(target=download)
        client.start()
        waits_s = []
        while client.is_alive():
            began = time.monotonic()
            service.get("/runs/done")
            waits_s.append(time.monotonic() - began)
        client.join()
        if max(waits_s) < took_s[0] / 3:
            return
    pytest.fail(f"others waited {max(waits_s):.2f} s while the download took {took_s[0]:.2f} s")


def test_two_services_one_writer(service):
    """A second service on the same folder reads the runs of the first, and is refused where it would write them too."""
    with Service(service.folder) as second:
        service.post("/runs", {"name": "shared", **ENDLESS})
        found = service.wait_until("shared", lambda run: run["epochs"] >= 2)
        second.wait_until("shared", lambda run: run["samples"] >= found["samples"])
        for path, body in (("continue", {}), ("burn", {"burn": 1})):
            status, answer = second.ask("POST", f"/runs/shared/{path}", body)
            assert status == 409
            assert str(service.process.pid) in json.loads(answer)["error"]
        assert second.end() == 0
    service.post("/runs/shared/stop", {})


def test_runs_from_elsewhere(service):
    """A run that another program wrote into the folder is listed and read, but not continued; a damaged one is listed."""
    p = np.random.default_rng(1).normal(size=(1, 2, 30))  # flattened, a single chain is a view that isn't contiguous
    for name in ("elsewhere", "damaged"):
        with DefaultBackend(outdir=service.folder / name) as backend:
            backend.ingest({"samples": {"p": p}})
    (service.folder / "damaged" / "posterity.journal").write_bytes(b"something else")
    np.testing.assert_array_equal(service.samples("elsewhere")["p"], p)
    _, body = service.ask("GET", "/runs/elsewhere/samples?flatten=true&format=npy")
    np.testing.assert_array_equal(np.load(io.BytesIO(body)), p[0].T)
    status, answer = service.ask("POST", "/runs/elsewhere/continue", {})
    assert status == 409
    assert "isn't from this service" in json.loads(answer)["error"]
    listed = {run["name"]: run for run in service.get("/runs")["runs"]}
    assert (listed["elsewhere"]["state"], listed["elsewhere"]["samples"]) == ("idle", 30)
    assert (listed["damaged"]["state"], bool(listed["damaged"]["error"])) == ("unreadable", True)


def test_full_disk_is_told_and_survived(service):
    """When the disk refuses more, the events say so and the run waits; when there is room again, nothing is missing."""
    service.post("/runs", {"name": "tight", **ENDLESS})
    with service.events("tight") as events:
        next(run for _, run in events if run["epochs"] >= 2)
        before = resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE, (100_000, before[1]))
        try:
            told = next(run for _, run in events if run["error"])
            assert told["state"] == "waiting for the disk"
        finally:
            resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE, before)
        next(run for _, run in events if run["state"] == "sampling")
    stopped = service.post("/runs/tight/stop", {})
    assert stopped["samples"] >= told["samples"]
    assert service.samples("tight")["p"].shape[2] == stopped["samples"]


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_commands_of_the_how_to(service, tmp_path):
    """Each curl command of the how-to page works, in the order of the page."""
    page = (DOCS / "how-to" / "serve-runs-over-http.md").read_text("utf-8")
    commands = re.findall(r"^curl (.*)$", page, re.MULTILINE)
    assert len(commands) == 9
    for command in commands:
        asked = f"curl --silent --fail-with-body {command}".replace(":8000/", f":{service.port}/")
        done = subprocess.run(asked, shell=True, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=100)
        assert done.returncode == 0, f"{command}: {done.stdout}"
    with open_run(service.folder / "first") as run, run.snapshot() as snapshot:
        assert snapshot.burn == 500
    assert np.load(tmp_path / "first.npy").shape == (32, 3, 2000)
