"""Training: `train` a run, `plan` it without training, `check` that it is right.

from weft.train import train
run = train("photos/metadata.csv", "image -> caption", out="runs/mine")
"""

from __future__ import annotations

from weft.train.check import check
from weft.train.plan import plan
from weft.train.session import train

__all__ = ["check", "plan", "train"]
