"""Generating through the worker and through the page's API, with the embedded model at its smallest."""

import os
import re
import tempfile
import time
from dataclasses import astuple, replace

import imageio.v3 as iio
import numpy as np
import pytest

pytest.importorskip("gradio")

from gradio_client import Client
from gradio_client.exceptions import AppError

from diffattn.demo import Limits, Request, Worker, build_demo, launch
from diffattn.demo.sessions import KEPT_RUNS, Run, Sessions
from diffattn.demo.worker import ComparisonReady, Failed, Progress, Stopped, VideoReady

SMALL = Request("a red circle", density=0.3, dense_start=0, steps=2, width=64, height=64, frames=5)
LONG = replace(SMALL, steps=50, width=128, height=128)


@pytest.fixture(scope="module")
def worker():
    return Worker(device="cpu")


@pytest.fixture(scope="module")
def url(worker):
    demo = build_demo(worker)
    _, url, _ = launch(demo, prevent_thread_lock=True, quiet=True)
    yield url
    demo.close(verbose=False)


@pytest.fixture
def run():
    sessions = Sessions()
    yield sessions.begin("me")
    sessions.close("me")


def wait_for(condition, seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


def idle(worker) -> bool:
    return wait_for(lambda: not worker.busy)


def ours(folder) -> list[str]:
    """What lies in a folder but for the downloads of gradio_client, whose names are hexadecimal."""
    return [name for name in os.listdir(folder) if not re.fullmatch("[0-9a-f]{40}", name)]


def test_a_run_tells_its_steps_and_gives_two_videos_numbers_and_a_map(worker, run):
    events = list(worker.run(worker.check(SMALL), run))
    steps = [(event.stage, event.step) for event in events if isinstance(event, Progress) and event.steps]
    assert steps == [("Dense", 1), ("Sparse (auto)", 1)]
    dense, sparse = (event for event in events if isinstance(event, VideoReady))
    assert iio.imread(dense.path).shape == iio.imread(sparse.path).shape == (5, 64, 64, 3)
    assert dense.trial.density == 1 > sparse.trial.density and dense.step_seconds > 0
    assert isinstance(events[-1], ComparisonReady) and events[-1].tokens == 2 * 8 * 8
    assert 10 < events[-1].comparison.mean["psnr"] and events[-1].picture.read_bytes().startswith(b"\x89PNG")


def test_stop_ends_a_run_at_its_next_step(worker, run):
    seen = []
    with pytest.raises(Stopped, match="cancelled"):
        for event in worker.run(worker.check(LONG), run):
            seen.append(event)
            if isinstance(event, Progress) and event.step == 1:
                run.stop.set()
    assert max(event.step for event in seen) <= 2 and idle(worker)


def test_an_iterator_that_is_dropped_ends_its_run(worker, run):
    events = worker.run(worker.check(LONG), run)
    next(event for event in events if event.step == 1)
    events.close()
    assert run.stop.is_set() and idle(worker)


def test_what_takes_too_long_is_stopped(run):
    slow = Worker(device="cpu", limits=Limits(seconds=1))
    with pytest.raises(Stopped, match="longer than the 1 seconds a run may take"):
        list(slow.run(slow.check(replace(LONG, frames=33)), run))


@pytest.mark.parametrize(
    "values, message",
    [
        ({"frames": 6}, "frames must be 5 or 9"),
        ({"width": 72}, "divisible by 16"),
        ({"heads": ("9:0",)}, "no layer 9: WanTransformer3DModel has layers 0..5"),
    ],
)
def test_what_the_pipeline_refuses_is_one_line(worker, run, values, message):
    with pytest.raises(Failed, match=message) as error:
        list(worker.run(worker.check(replace(SMALL, **values)), run))
    assert "\n" not in str(error.value)


def test_a_session_keeps_few_runs_and_leaves_none():
    sessions = Sessions()
    runs = [sessions.begin("me") for _ in range(20)]
    others = sessions.begin("you")
    assert len(os.listdir(sessions.folder)) == KEPT_RUNS + 1 and runs[0].stop.is_set() and not runs[-1].stop.is_set()
    sessions.close("me")
    assert os.listdir(sessions.folder) == [others.folder.name] and runs[-1].stop.is_set()
    folder = sessions.folder
    del sessions
    assert not folder.exists()


def test_two_users_at_once_get_their_own_results_and_leave_no_files(tmp_path, worker, run, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    monkeypatch.setenv("GRADIO_HEARTBEAT_INTERVAL", "1")
    (tmp_path / "tmp").mkdir()
    demo = build_demo(worker)
    _, url, _ = launch(demo, prevent_thread_lock=True, quiet=True)
    clients = [Client(url, verbose=False, download_files=str(tmp_path / f"user{seed}")) for seed in (1, 2)]
    asked = [replace(SMALL, seed=seed) for seed in (1, 2)]
    jobs = [client.submit(*astuple(request), api_name="/generate") for client, request in zip(clients, asked)]
    results = [job.result(timeout=200) for job in jobs]
    (folder,) = (tmp_path / "gradio").iterdir()
    assert len(os.listdir(folder)) == 2
    for request, (status, dense, sparse, numbers, *pictures) in zip(asked, results):
        made = [event for event in worker.run(request, Run(run.folder)) if isinstance(event, VideoReady)]
        for mine, expected in zip((dense, sparse), made):
            assert np.array_equal(iio.imread(_path(mine)), iio.imread(expected.path))
        assert "Done" in status and "PSNR to dense" in numbers
        assert len(pictures) == 2 and all(os.path.getsize(picture) > 1000 for picture in pictures)
    for client in clients:
        client.close()
    assert wait_for(lambda: not os.listdir(folder)), "files stay though the users are gone"
    assert os.listdir(tmp_path / "gradio") == [folder.name] and ours(tmp_path / "tmp") == []
    demo.close(verbose=False)


def test_an_api_user_who_cancels_stops_the_work(url, worker):
    client = Client(url, verbose=False)
    job = client.submit(*astuple(LONG), api_name="/generate")
    assert wait_for(lambda: "step 1 of" in str(job.outputs()[-1:]))
    job.cancel()
    assert idle(worker)
    client.close()


def test_a_wrong_value_is_a_message_over_the_api_too(url):
    client = Client(url, verbose=False)
    for values, message in (
        ({"steps": 0}, "Steps must be from 1 to 50"),
        ({"model": "/etc"}, "The model must be"),
        ({"heads": ("x",)}, "A head is"),
    ):
        with pytest.raises(AppError, match=message) as error:
            client.predict(*astuple(replace(SMALL, **values)), api_name="/generate")
        assert "Traceback" not in str(error.value)
    client.close()


def _path(video) -> str:
    return video["video"] if isinstance(video, dict) else video
