from __future__ import annotations

import errno
import json
import resource
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from torch import nn

from weft.errors import RunError
from weft.train import checkpoint


def parts(value: float = 1.0) -> dict:
    return {
        "model.safetensors": {"w": torch.full((8, 8), value)},
        "optimizer.pt": [{"state": {0: {"momentum": torch.full((8, 8), value)}}, "groups": [1, 0.5, None]}],
        "state.json": {"step": int(value), "tokens": 0.1},
    }


def test_what_is_saved_is_read_back_bit_for_bit(tmp_path):
    path = checkpoint.save(tmp_path, 7, parts(7), keep=2)
    assert path.name == "step-000007"
    back = checkpoint.read(path)
    assert torch.equal(back["model.safetensors"]["w"], parts(7)["model.safetensors"]["w"])
    assert torch.equal(back["optimizer.pt"][0]["state"][0]["momentum"], torch.full((8, 8), 7.0))
    assert back["state.json"] == {"step": 7, "tokens": 0.1}


def test_only_the_newest_are_kept_and_no_staging_is_left(tmp_path):
    for step in (5, 10, 999_999, 1_000_000):
        checkpoint.save(tmp_path, step, parts(step), keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-1000000", "step-999999"]
    assert checkpoint.newest(tmp_path, pytest.fail).name == "step-1000000"  # by number, not by the alphabet


@pytest.mark.parametrize("harm", ["cut", "flip", "remove", "manifest", "manifest is a list"])
def test_a_damaged_checkpoint_is_said_and_the_one_before_is_taken(tmp_path, harm):
    checkpoint.save(tmp_path, 1, parts(1), keep=2)
    last = checkpoint.save(tmp_path, 2, parts(2), keep=2)
    file = last / "model.safetensors"
    data = file.read_bytes()
    if harm == "cut":
        file.write_bytes(data[:-1])
    elif harm == "flip":
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif harm == "remove":
        file.unlink()
    else:
        (last / "manifest.json").write_text("[]" if harm.endswith("list") else "{")
    said: list[str] = []
    assert checkpoint.newest(tmp_path, said.append).name == "step-000001"
    assert len(said) == 1 and "step-000002" in said[0] and "damaged" in said[0]
    with pytest.raises(RunError, match="damaged"):
        checkpoint.read(last)


def test_nothing_valid_is_none_and_everything_is_said(tmp_path):
    path = checkpoint.save(tmp_path, 1, parts(1), keep=2)
    (path / "state.json").unlink()
    said: list[str] = []
    assert checkpoint.newest(tmp_path, said.append) is None
    assert "state.json is missing" in said[0]


@pytest.mark.parametrize("file", [".safetensors", ".pt", ".json"])
def test_a_full_disk_leaves_the_last_checkpoint_intact(tmp_path, monkeypatch, file):
    checkpoint.save(tmp_path, 1, parts(1), keep=1)

    def full(path, content):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setitem(checkpoint.WRITERS, file, full)
    with pytest.raises(RunError, match=r"step 2 .*No space left.*step-000001 is intact"):
        checkpoint.save(tmp_path, 2, parts(2), keep=1)
    assert [p.name for p in tmp_path.iterdir()] == ["step-000001"], "nothing half written stays"
    assert checkpoint.damage(tmp_path / "step-000001") == ""


@pytest.mark.parametrize("limit", [100, 700, 1500, 2600])
def test_a_real_failing_write_is_a_run_error_whichever_file_it_hits(tmp_path, limit):
    """The operating system itself refuses to write files over `limit` bytes: each library's own error is met."""
    checkpoint.save(tmp_path, 1, parts(1), keep=1)
    big = {
        "state.json": {"x": "y" * 500},
        "model.safetensors": {"w": torch.ones(250)},
        "optimizer.pt": [{"momentum": torch.ones(400)}],
    }
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        with pytest.raises(RunError, match="step-000001 is intact"):
            checkpoint.save(tmp_path, 2, big, keep=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, old)
    assert checkpoint.save(tmp_path, 2, big, keep=1).exists(), "without the limit the same content is written"


def test_a_damaged_checkpoint_of_the_same_step_is_replaced(tmp_path):
    path = checkpoint.save(tmp_path, 3, parts(3), keep=2)
    (path / "model.safetensors").write_bytes(b"")
    checkpoint.save(tmp_path, 3, parts(3), keep=2)
    assert checkpoint.damage(path) == ""


KILLED = """
import json, os, shutil, sys, torch
from pathlib import Path
from weft.train import checkpoint

parts = lambda v: {"model.safetensors": {"w": torch.full((4,), v)}, "state.json": {"step": v}}
count = 0

def counted(real, stage):
    def call(*a, **k):
        global count
        count += 1
        if count == stage:
            os._exit(9)
        return real(*a, **k)
    return call

report = []
for stage in range(1, 10):
    folder = Path(sys.argv[1]) / str(stage)
    pid = os.fork()
    if not pid:
        checkpoint.save(folder, 1, parts(1.0), keep=1)
        for owner, name in ((checkpoint, "put"), (checkpoint, "flush_folder"), (os, "rename"), (os, "unlink")):
            setattr(owner, name, counted(getattr(owner, name), stage))
        checkpoint.save(folder, 2, parts(2.0), keep=1)
        os._exit(0)
    report.append(os.waitpid(pid, 0)[1] >> 8)
print(json.dumps(report))
"""


def test_a_kill_between_any_two_writes_leaves_a_valid_newest_checkpoint(tmp_path):
    """A child is ended without warning at every stage of the second save, and of the removal of the first."""
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=True, capture_output=True, text=True)
    ends, found = json.loads(done.stdout), []
    for stage in range(1, 10):
        folder = tmp_path / str(stage)
        newest = checkpoint.newest(folder, pytest.fail)
        found.append(checkpoint.read(newest)["state.json"]["step"])
        checkpoint.sweep(folder)
        assert all(p.name.startswith("step-") for p in folder.iterdir()), "sweep removes what was half written"
        assert all(checkpoint.damage(p) == "" for p in folder.iterdir())
    # put x3, flush, rename | flush (committed), rename of the old one, deleting its files
    assert ends == [9] * 9 and found == [1] * 5 + [2] * 4, (ends, found)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.table.weight
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("derived", torch.ones(4), persistent=False)


def test_weights_hold_shared_tensors_once_and_leave_out_what_is_derived(tmp_path):
    model, other = Tied(), Tied()
    tensors = checkpoint.weights(model)
    assert set(tensors) == {"table.weight", "mean"}
    path = checkpoint.save(tmp_path, 1, {"model.safetensors": tensors}, keep=1)
    checkpoint.fill(other, checkpoint.read(path)["model.safetensors"])
    assert torch.equal(other.head.weight, model.table.weight)


def test_foreign_weights_are_refused(tmp_path):
    tensors = checkpoint.weights(Tied())
    with pytest.raises(RunError, match="mean is missing"):
        checkpoint.fill(Tied(), {"table.weight": tensors["table.weight"]})
    with pytest.raises(RunError, match=r"table.weight is \(2, 4\), the model's \(5, 4\)"):
        checkpoint.fill(Tied(), {**tensors, "table.weight": torch.ones(2, 4)})
    with pytest.raises(RunError, match="lora is not the model's"):
        checkpoint.fill(Tied(), {**tensors, "lora": torch.ones(1)})


def test_published_weights_are_the_checkpoints_even_after_it_is_pruned(tmp_path):
    target = tmp_path / "model.safetensors"
    for step in (1, 2):
        checkpoint.publish(checkpoint.save(tmp_path / "c", step, parts(step), keep=1), target)
    shutil.rmtree(tmp_path / "c")
    assert torch.equal(checkpoint.READERS[".safetensors"](target)["w"], torch.full((8, 8), 2.0))


def test_a_pickle_that_runs_code_is_not_read(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ("run",)

    path = checkpoint.save(tmp_path, 1, parts(1), keep=1)
    torch.save(Evil(), path / "optimizer.pt")
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["files"]["optimizer.pt"]
    (path / "manifest.json").write_text(json.dumps(manifest))
    assert "optimizer.pt" not in checkpoint.read(path), "what the manifest does not name is not opened"
    with pytest.raises(Exception, match=r"[Ww]eights"):
        checkpoint.READERS[".pt"](path / "optimizer.pt")
