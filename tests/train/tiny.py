"""A small table and a small recipe that every test of training uses."""

from __future__ import annotations

import csv
from pathlib import Path

COLOURS, ANIMALS = ("red", "blue", "green"), ("cat", "dog", "bird", "fish")
ARROWS = ("question -> answer", "-> note")
SMALL = (
    "model.dim=32", "model.depth=1", "model.heads=2", "train.tokens=128", "train.length=64",
    "train.options.check=false", "train.options.compile=off", "train.options.dtype=float32",
)  # fmt: skip


def table(folder: Path, rows: int = 240) -> Path:
    """question, answer (the colour in it), note."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "animals.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["question", "answer", "note"])
        for i in range(rows):
            colour, animal = COLOURS[i * 7 % 3], ANIMALS[i * 5 % 4]
            writer.writerow([f"what colour is the {colour} {animal} number {i}?", colour, f"{colour} {animal} {i}"])
    return path
