"""A `.pt2` from outside: what is arithmetic is read, what could be run or unpickled is not."""

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clip3dreid.errors import InputError
from clip3dreid.model.program_archive import _is_arithmetic, read_program


class Pooled(nn.Module):
    """Reshapes by the batch's size, so that sizes stand in the program as arithmetic."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 5)

    def forward(self, images: Tensor) -> Tensor:
        both = torch.cat([images, images.flip(-1)])
        return self.linear(both.mean((2, 3))).reshape(2, both.shape[0] // 2, 5).mean(0)


@pytest.fixture
def program(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    exported = torch.export.export(
        Pooled(), (torch.zeros(4, 3, 6, 4),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)
    )
    torch.export.save(exported, tmp_path / "tiny.pt2")
    return tmp_path / "tiny.pt2"


def rewritten(path: Path, change: Callable[[str, bytes], bytes | None]) -> Path:
    """Write the archive with some members changed."""
    other = path.with_name("changed.pt2")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(other, "w", zipfile.ZIP_STORED) as new:
        for member in old.infolist():
            content = old.read(member)
            changed = change(member.filename, content)
            new.writestr(member, content if changed is None else changed)
    return other


def graph(edit: Callable[[dict[str, Any]], None]) -> Callable[[str, bytes], bytes | None]:
    def change(name: str, content: bytes) -> bytes | None:
        if "/models/" not in name:
            return None
        model = json.loads(content)
        edit(model)
        return json.dumps(model).encode()

    return change


def test_a_program_is_read_and_computes_what_it_did(program: Path) -> None:
    read, contract = read_program(program)
    assert contract is None
    images = torch.rand(7, 3, 6, 4)
    torch.manual_seed(0)
    torch.testing.assert_close(read.module(check_guards=False)(images), Pooled()(images))


@pytest.mark.parametrize(
    "target",
    [
        "torch.hub.load",
        "torch.load",
        "os.system",
        "_operator.attrgetter",
        "torch.ops.aten.from_file.default",
        "#x:y",
    ],
)
def test_a_program_that_calls_more_than_mathematics_is_refused(program: Path, target: str) -> None:
    def edit(model: dict[str, Any]) -> None:
        model["graph_module"]["graph"]["nodes"][0]["target"] = target

    with pytest.raises(InputError, match=f"calls '{target}', which is no operator"):
        read_program(rewritten(program, graph(edit)))


def test_a_size_that_is_code_is_never_evaluated(program: Path, tmp_path: Path) -> None:
    witness = tmp_path / "run"
    code = f"__import__('pathlib').Path({str(witness)!r}).touch()"

    def edit(model: dict[str, Any]) -> None:
        model["graph_module"]["graph"]["tensor_values"]["images"]["sizes"][0]["as_expr"]["expr_str"] = code

    with pytest.raises(InputError, match="which is no arithmetic"):
        read_program(rewritten(program, graph(edit)))
    assert not witness.exists()


class Witness:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_nothing_in_an_archive_is_unpickled(program: Path, tmp_path: Path) -> None:
    witness = tmp_path / "run"
    saved = io.BytesIO()
    torch.save((Witness(witness),), saved)

    def inputs(name: str, content: bytes) -> bytes | None:
        return saved.getvalue() if name.endswith("sample_inputs/model.pt") else None

    with pytest.raises(InputError, match=r"cannot be read as a program of torch\.export"):
        read_program(rewritten(program, inputs))

    def weights(name: str, content: bytes) -> bytes | None:
        if name.endswith("weight_0"):
            return pickle.dumps(Witness(witness))
        return content.replace(b'"use_pickle": false', b'"use_pickle": true') if "config" in name else None

    with pytest.raises(InputError, match="holds pickled tensors or objects, which are not read"):
        read_program(rewritten(program, weights))
    assert not witness.exists()


def test_objects_that_are_read_by_their_name_are_refused(program: Path, tmp_path: Path) -> None:
    witness = tmp_path / "run"
    entry = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": False, "tensor_meta": None}

    def constants(name: str, content: bytes) -> bytes | None:
        wanted = name.endswith("constants_config.json")
        return json.dumps({"config": {"x": entry}}).encode() if wanted else None

    for path_name in ("opaque_obj_0", "custom_obj_0"):
        entry["path_name"] = path_name
        changed = rewritten(program, constants)
        with zipfile.ZipFile(changed, "a") as archive:
            archive.writestr(f"tiny/data/constants/{path_name}", pickle.dumps(Witness(witness)))
        with pytest.raises(InputError, match="which is no part of a program"):
            read_program(changed)
        with pytest.raises(InputError, match="holds pickled tensors or objects, which are not read"):
            read_program(rewritten(program, constants))
    assert not witness.exists()


@pytest.mark.parametrize(
    "name", ["data/aotinductor/model/x.so", "data/executorch/x", "xl_model_weights/x", "../x"]
)
def test_compiled_libraries_and_unknown_members_are_refused(program: Path, name: str) -> None:
    with zipfile.ZipFile(program, "a") as archive:
        archive.writestr(f"tiny/{name}", b"code")
    with pytest.raises(InputError, match="which is no part of a program"):
        read_program(program)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_that_is_there_twice_or_compressed_is_refused(program: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(program) as archive:
        name = next(name for name in archive.namelist() if "/models/" in name)
        content = archive.read(name)
    packed = tmp_path / "packed.pt2"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    with zipfile.ZipFile(program, "a") as archive:
        archive.writestr(name, content)
    for path in (program, packed):
        with pytest.raises(InputError, match="or is there twice or compressed"):
            read_program(path)


def test_what_is_no_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pt2"
    path.write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"cannot be read as a program of torch\.export"):
        read_program(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/version", "z")
    with pytest.raises(InputError, match=r"does not hold one program of torch\.export"):
        read_program(path)


@pytest.mark.parametrize(
    "text",
    ["2*s31", "s0 + 1", "FloorDiv(2*s0, 2)", "Symbol('s31', positive=True, integer=True)", "Max(1, s0) < 3", "-4",
     "Mul(Integer(2), Symbol('u0', integer=True))"],
)  # fmt: skip
def test_sizes_are_arithmetic(text: str) -> None:
    assert _is_arithmetic(text)


@pytest.mark.parametrize(
    "text",
    ["x", "s0.real", "exit()", "s0[0]", "'a'", "lambda: 1", "Symbol('x')", "Symbol('s0', cls=s1)", "Max(*s0)", "1 +",
     "(s0 for s0 in s1)", "Symbol(s0)", "1 if s0 else 2", 3],
)  # fmt: skip
def test_other_texts_are_not(text: Any) -> None:
    assert not _is_arithmetic(text)
