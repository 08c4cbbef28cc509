"""What every test shares: one torch thread per worker (two workers with two threads each are three times slower)."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("COLUMNS", "120")  # rich draws its tables as wide wherever the tests run

import hypothesis
import torch  # after the environment: OpenMP reads it once

torch.set_num_threads(1)
hypothesis.settings.register_profile("weft", deadline=None)  # how long an example takes says how busy the machine is
hypothesis.settings.load_profile("weft")
