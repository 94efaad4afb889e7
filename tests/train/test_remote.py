"""States on a real S3 API on loopback: an empty folder is filled from there, nothing torn is loaded, and a store that is away is told."""

import json
import shutil
import threading

import pytest

from fmray.core.config import load_config
from fmray.core.errors import ArtifactError, ConfigError, RunError
from fmray.train import storage
from fmray.train.config import PretrainConfig
from fmray.train.layout import read_held
from fmray.train.remote import RemoteStates
from fmray.train.retention import Keep
from fmray.train.saving import StateWriter
from fmray.train.state import STATE, last_good_state, latest_state, state_folder
from tests.s3 import Bucket, at
from tests.train.test_layout import COUNTS, held
from tests.train.test_saving import Share, state

URI = "s3://states/run/base-1"


@pytest.fixture
def bucket(s3_server, monkeypatch):
    at(s3_server, monkeypatch)
    made = Bucket(s3_server, "states")
    yield made
    made.remove()


def save(root, *steps, keep=None, uri=URI):
    """States of two workers, copied to the store."""
    workers = [StateWriter(root, rank=rank, world_size=2, attempt="a", keep=keep or Keep(), remote=RemoteStates(uri)) for rank in (0, 1)]
    for step in steps:
        for rank, worker in enumerate(workers):
            worker.save(Share(2, rank), state(step, 2))
        for worker in workers:
            worker.wait()


def folders(bucket):
    return sorted({key.split("/")[2] for key in bucket.keys()})  # noqa: SIM118  it is no mapping


def test_an_empty_folder_is_filled_with_the_newest_state_and_older_ones_go_by_the_policy(bucket, tmp_path):
    save(tmp_path / "here", 10, 20, 30, keep=Keep(last=1, every_hours=1.0))
    assert folders(bucket) == ["step-000000010", "step-000000030"]
    # The store has them; below the storage itself only the last ones stay.
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["step-000000030"]
    there = tmp_path / "there"
    RemoteStates(URI).fetch(there)
    folder, found = last_good_state(there)
    assert (folder.name, found.step) == ("step-000000030", 30)
    assert found == last_good_state(tmp_path / "here")[1]
    assert read_held(folder, held(3, 1, fill=False)) == COUNTS
    # What is there already is not fetched again.
    (folder / STATE).touch()
    bucket.remove()
    bucket.client.create_bucket(Bucket="states")
    RemoteStates(URI).fetch(there)
    assert latest_state(there)[1].step == 30


def test_nothing_torn_and_nothing_damaged_is_loaded(bucket, tmp_path):
    save(tmp_path / "here", 10, 20, 30, keep=Keep(last=3))
    prefix = "run/base-1"
    bucket.delete(f"{prefix}/step-000000030/{STATE}")
    RemoteStates(URI).fetch(tmp_path / "a")
    assert latest_state(tmp_path / "a")[1].step == 20
    bucket.put(f"{prefix}/step-000000020/rank-00001.safetensors", b"torn")
    RemoteStates(URI).fetch(tmp_path / "b")
    assert latest_state(tmp_path / "b")[1].step == 10
    bucket.delete(f"{prefix}/step-000000010/rank-00000.safetensors")
    with pytest.raises(ArtifactError, match="every state there is damaged"):
        RemoteStates(URI).fetch(tmp_path / "c")
    assert latest_state(tmp_path / "c") is None
    # A folder whose own states are damaged takes the store's.
    save(tmp_path / "d", 40)
    (state_folder(tmp_path / "d", 40) / "rank-00000.safetensors").write_bytes(b"x")
    RemoteStates(URI).fetch(tmp_path / "d")
    assert last_good_state(tmp_path / "d")[1].step == 40


def test_a_store_that_is_away_for_a_moment_is_waited_for(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "WAITS_S", (0.2,) * 50)
    at("http://127.0.0.1:9", monkeypatch)
    back = threading.Timer(1.0, lambda: at(bucket.url, monkeypatch))
    back.start()
    save(tmp_path / "here", 10)
    back.join()
    RemoteStates(URI).fetch(tmp_path / "there")
    assert latest_state(tmp_path / "there")[1].step == 10


def test_a_store_that_stays_away_is_one_clear_stop_with_the_last_state_whole(bucket, tmp_path, monkeypatch):
    save(tmp_path / "here", 10)
    monkeypatch.setattr(storage, "WAITS_S", (0.05,))
    at("http://127.0.0.1:9", monkeypatch)
    worker = StateWriter(tmp_path / "here", rank=0, world_size=1, attempt="b", keep=Keep(), remote=RemoteStates(URI))
    worker.save(Share(1, 0), state(20))
    with pytest.raises(RunError, match=r"s3://states/run/base-1/step-000000020/rank-00000.safetensors: cannot be written, in 2 attempts over 0.05 s") as error:
        worker.wait()
    assert "\n" not in str(error.value)
    assert latest_state(tmp_path / "here")[1].step == 10
    with pytest.raises(ConfigError, match=r"s3://states/run/base-1: cannot be read \(.*check the address") as refused:
        RemoteStates(URI).fetch(tmp_path / "there")
    assert refused.value.exit_code == 2
    at(bucket.url, monkeypatch)
    assert folders(bucket) == ["step-000000010"]
    RemoteStates(URI).fetch(tmp_path / "there")
    assert latest_state(tmp_path / "there")[1].step == 10


def test_a_folder_may_stand_in_for_a_store_and_a_bucket_must_exist(bucket, tmp_path):
    save(tmp_path / "here", 10, 20, 30, uri=f"file://{tmp_path}/mounted")
    assert json.loads((tmp_path / "mounted" / "step-000000030" / STATE).read_text())["step"] == 30
    shutil.rmtree(tmp_path / "here")
    RemoteStates(f"file://{tmp_path}/mounted").fetch(tmp_path / "here")
    assert latest_state(tmp_path / "here")[1].step == 30
    with pytest.raises(ConfigError, match="cannot be read"):
        RemoteStates("s3://nowhere/run").fetch(tmp_path / "x")


@pytest.mark.parametrize(("uri", "message"), [("runs/states", "is no URI such as s3://"), ("s3://key:secret@bucket/x", "holds credentials")])
def test_what_is_no_uri_is_refused(uri, message):
    with pytest.raises(ConfigError, match=message) as error:
        load_config(PretrainConfig, {"model": {"type": "decoder"}, "global_batch_size": 8, "max_steps": 1, "states": uri}, "base")
    assert "secret" not in str(error.value)
