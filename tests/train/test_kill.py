"""Thirty kill -9 at random moments of one short training: no unreadable checkpoint, and the same bits at the end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HARNESS = '''
"""Parent: imports everything once, then forks a training again and again and kills it after a random time."""
import json, os, random, signal, sys, time
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads do not survive a fork
from pathlib import Path
sys.path.insert(0, sys.argv[3])
import torch
torch.set_num_threads(1)
from tiny import ARROWS, SMALL, table
from weft.train import checkpoint, train

folder, kills = Path(sys.argv[1]), int(sys.argv[2])
words = [*SMALL, "train.options.save_every=5", "train.options.keep=3", "train.options.evaluate_every=50"]
data = table(folder / "data")

def start(out):
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)
        begun = (out / "recipe.toml").exists()
        train(resume=out) if begun else train(data, *ARROWS, out=out, steps=200, overrides=words)
        code = 0
    finally:
        os._exit(code)

train(data, *ARROWS, out=folder / "whole", steps=200, overrides=words)  # here: so that every life starts warm
out, chance = folder / "killed", random.Random(0)
report = {"kills": 0, "reached": [], "damaged": [], "codes": []}
while report["kills"] < kills:
    pid = start(out)
    # As often as not in the middle of training: wait for this life's first checkpoint, then a little.
    mark, until = set((out / "checkpoints").glob("step-*")), time.time() + chance.uniform(0.05, 1.5)
    while time.time() < until and set((out / "checkpoints").glob("step-*")) <= mark:
        time.sleep(0.005)
    time.sleep(chance.uniform(0, 0.04))
    os.kill(pid, signal.SIGKILL)
    report["codes"].append(os.waitpid(pid, 0)[1])
    report["kills"] += 1
    there = checkpoint.all_of(out / "checkpoints")
    report["damaged"] += [f"{p}: {checkpoint.damage(p)}" for p in there if checkpoint.damage(p)]
    report["reached"].append(int(there[0].name[5:]) if there else 0)
report["last"] = os.waitpid(start(out), 0)[1]
print(json.dumps(report))
'''


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="forks")
def test_thirty_kills_leave_every_checkpoint_readable_and_change_no_bit(tmp_path):
    from weft.run import Run

    script = tmp_path / "harness.py"
    script.write_text(HARNESS)
    here = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), "30", here],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["damaged"] == [] and report["last"] == 0
    assert report["codes"].count(9) >= 25, f"too few lives were ended by the kill: {report}"
    assert len(set(report["reached"])) > 5, f"the kills fell into too few places: {report['reached']}"
    whole, killed = Run.open(tmp_path / "whole"), Run.open(tmp_path / "killed")
    losses = [[(line["step"], line["loss"]) for line in run.metrics("step")] for run in (whole, killed)]
    assert [step for step, _ in losses[0]] == list(range(1, 201))
    assert losses[0] == losses[1], "losses after thirty kills are not those of a run in one go"
    held = [[line["validation"] for line in run.metrics("validation")] for run in (whole, killed)]
    assert held[0] == held[1]
    assert sum(line["event"] == "resume" for line in killed.metrics("event")) >= 5
    assert not list((killed.path / "checkpoints").glob(".*")), "nothing half written is left"
    assert (whole.path / "model.safetensors").read_bytes() == (killed.path / "model.safetensors").read_bytes()
