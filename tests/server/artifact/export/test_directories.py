"""Exports to directories that stock transformers reads: the same weights, the older names, nothing half written."""

import json
import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors.pack_quantized import pack_to_int32
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, Gemma3TextConfig

from server.artifact.checkpoint import chain
from server.artifact.checkpoint import lineage as record
from server.artifact.checkpoint.reader import Artifact
from server.artifact.export import compressed
from server.artifact.export.settings import for_all
from server.artifact.signing import keys
from server.commands.__main__ import main
from server.commands.artifact.export import UNITS
from server.storage.folders import INSIDE
from tests.server.artifact.export import made

PROMPT = torch.tensor([[3, 7, 100, 256, 5, 77, 12, 300]])


@pytest.mark.parametrize("change", [made.dense, made.half, made.codes(4, 32)])
def test_transformers_loads_the_very_weights(tmp_path: Path, change: made.Change) -> None:
    artifact = made.artifact(tmp_path, change)
    folder = made.export(artifact, "hf")
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    state = model.state_dict()
    assert state.keys() == set(artifact.names())
    assert all(torch.equal(state[name], tensor) for name, tensor in artifact.tensors())
    words = AutoTokenizer.from_pretrained(folder)
    assert words.decode(words("Pruned, and 12 more.").input_ids) == "Pruned, and 12 more."
    assert words.chat_template == made.TEMPLATE


def test_only_the_remains_of_a_killed_export_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact, target = made.artifact(tmp_path, made.half), tmp_path / "exported"
    arguments = ["export", str(artifact.path), "--to", "hf", "--output", str(target)]
    beside = tmp_path / "exported.partial"
    beside.mkdir()
    (beside / "thesis.txt").write_text("years of work")
    assert main(arguments) == 2
    assert f"{beside} is in the way" in capsys.readouterr().err
    assert (beside / "thesis.txt").read_text() == "years of work"
    (beside / "thesis.txt").unlink()
    (beside / INSIDE).mkdir()
    (beside / INSIDE / "model.safetensors").write_bytes(b"half")
    assert main(arguments) == 0
    assert not beside.exists()


def test_a_large_model_is_several_files_with_an_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = made.artifact(tmp_path, made.half)
    monkeypatch.setitem(UNITS, "MB", 10**5)
    folder = made.export(artifact, "hf", "--shard-size", "1MB")
    files = sorted(folder.glob("*.safetensors"))
    assert [file.name for file in files] == [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    assert all(file.stat().st_size < 110_000 for file in files)
    state = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in artifact.tensors())


def test_settings_have_old_and_new_names_and_no_sparsity_block(tmp_path: Path) -> None:
    rope = {"rope_type": "linear", "factor": 4.0, "rope_theta": 1234.0}
    artifact = made.artifact(tmp_path, made.half, rope_parameters=rope)
    folder = made.export(artifact, "hf")
    values: dict[str, Any] = json.loads((folder / "config.json").read_text())
    assert (values["rope_theta"], values["torch_dtype"], values["dtype"]) == (1234.0, "bfloat16", "bfloat16")
    assert values["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}
    assert values["rope_parameters"] == artifact.config["rope_parameters"]
    assert not [key for key in values if "spars" in key or "quant" in key]
    ours = AutoConfig.for_model("llama", **{k: v for k, v in artifact.config.items() if k != "model_type"}).to_dict()
    theirs = AutoConfig.from_pretrained(folder).to_dict()
    assert {key: theirs[key] for key in ours if key not in ("_name_or_path", "torch_dtype")} == {
        key: ours[key] for key in ours if key not in ("_name_or_path", "torch_dtype")
    }


def test_gemma_s_two_bases_get_their_older_names() -> None:
    rope = {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}
    values = for_all({"rope_parameters": rope, "sparsity_config": {"format": "sparse-24"}})
    assert values == {"rope_parameters": rope, "rope_theta": 1e6, "rope_local_base_freq": 1e4}


def test_gemma_s_scaled_layers_are_scaled_under_the_older_name_too() -> None:
    scaled = {"rope_theta": 1e6, "rope_type": "linear", "factor": 8.0}
    rope = {"full_attention": scaled, "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"}}
    values = for_all({"model_type": "gemma3_text", "rope_parameters": rope})
    older = {name: value for name, value in values.items() if name != "rope_parameters"}
    assert older["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}
    wanted = Gemma3TextConfig(rope_parameters=rope).rope_parameters
    assert Gemma3TextConfig(**{k: v for k, v in values.items() if k != "model_type"}).rope_parameters == wanted
    assert Gemma3TextConfig(**{k: v for k, v in older.items() if k != "model_type"}).rope_parameters == wanted


@pytest.mark.parametrize(("bits", "group"), [(4, 32), (4, 128), (8, 32), (8, 64)])
@torch.no_grad()
def test_transformers_computes_with_the_codes(tmp_path: Path, bits: int, group: int) -> None:
    artifact = made.artifact(tmp_path, made.codes(bits, group))
    folder = made.export(artifact, "compressed-tensors")
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found = model(PROMPT).logits  # the first pass turns codes into weights
    assert torch.allclose(found, made.exact(artifact)(PROMPT).logits, atol=1e-4)
    assert found.abs().max() > 0.1
    rounded: Any = AutoModelForCausalLM.from_pretrained(folder)
    assert rounded.dtype == torch.bfloat16
    assert (rounded(PROMPT).logits.float() - found).abs().max() < 0.05


@pytest.mark.parametrize("bits", [4, 8])
def test_codes_are_packed_as_the_library_packs_them(bits: int) -> None:
    codes = torch.arange(-(2 ** (bits - 1)), 2 ** (bits - 1)).repeat(4).view(-1, 32).to(torch.int8)
    assert torch.equal(compressed.pack(codes, bits), pack_to_int32(codes, bits))


def test_two_kinds_of_codes_are_two_groups_and_embeddings_stay_at_16_bits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def change(name: str, tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        return made.codes(8 if "down" in name else 4, 64, embeddings=True)(name, tensor)

    artifact = made.artifact(tmp_path, change)
    folder = made.export(artifact, "compressed-tensors")
    settings = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert sorted(group["weights"]["num_bits"] for group in settings["config_groups"].values()) == [4, 8]
    assert "model.embed_tokens.weight, since vLLM takes embeddings and head at 16 bits only" in capsys.readouterr().out
    with torch.no_grad():
        found = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(PROMPT).logits
        assert torch.allclose(found, made.exact(artifact, ".layers.")(PROMPT).logits, atol=1e-4)


def test_a_model_without_codes_is_not_packed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifact = made.artifact(tmp_path, made.half)
    words = ["export", str(artifact.path), "--to", "compressed-tensors", "--output", str(tmp_path / "out")]
    assert main(words) == 2
    assert "has nothing to pack: no matrix of a block is quantised; `--to hf` writes any" in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(("form", "said"), [("hf", "transformers, vLLM and"), ("gguf", "llama.cpp reads")])
def test_the_loss_of_sparsity_is_noted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str, said: str
) -> None:
    folder = made.export(made.artifact(tmp_path, made.half), form)
    printed = capsys.readouterr().out
    assert "at most 32 of every 64 columns are kept (2:4 is 32 of 64)" in printed
    assert f"{said}" in printed
    assert "no faster for its zeros" in printed
    assert "no faster for its zeros" in (folder / "README.md").read_text()


@pytest.mark.parametrize("form", ["hf", "compressed-tensors", "gguf"])
def test_an_export_is_a_step_of_the_chain_and_can_be_signed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    artifact = made.artifact(tmp_path, made.codes(4, 32))
    folder = made.export(artifact, form)
    lineage = record.read(folder)
    assert [link.technique for link in chain.links(lineage)] == ["changed", "export"]
    assert lineage.steps[0].options == {"to": form}
    assert lineage.parent_digest == record.address(artifact.lineage)
    materials = (folder / "bom.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(materials) is None
    component = json.loads(materials)["metadata"]["component"]
    [weights] = [path for path in folder.iterdir() if path.suffix in (".safetensors", ".gguf")]
    assert component["hashes"] == [{"alg": "SHA-256", "content": record.digest_of(weights)}]
    assert len(component["pedigree"]["ancestors"]) == 2
    assert main(["lineage", str(folder)]) == 0
    assert f"export (to = {form})" in capsys.readouterr().out
    key, signers = tmp_path / "alice.pem", tmp_path / "signers"
    signers.write_text(keys.Signer("alice", keys.create(key, elliptic=False)).line)
    assert main(["sign", str(folder), "--key", str(key)]) == 0
    assert main(["verify", str(folder), "--signers", str(signers)]) == 0
    (folder / "README.md").write_text("forged")
    assert main(["verify", str(folder), "--signers", str(signers)]) == 2


def test_an_export_for_other_software_is_not_opened_as_an_artifact(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = made.export(made.artifact(tmp_path, made.codes(8, 32)), "compressed-tensors")
    registry = str(tmp_path / "registry.sqlite3")
    for words in (["export", str(folder), "--to", "hf", "--output", str(tmp_path / "again")],
                  ["registry", "--registry", registry, "add", "tiny", str(folder)]):  # fmt: skip
        assert main(words) == 2
        assert "is an export for other software (compressed-tensors)" in capsys.readouterr().err
    assert not list(tmp_path.glob("again*"))


def flip(folder: Path) -> None:
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))


def forge(folder: Path) -> None:
    """A weight is changed and the record's digest of the file too, but not what the last step made."""
    flip(folder)
    values = json.loads((folder / "lineage.json").read_text())
    values["files"]["model.safetensors"] = record.digest_of(folder / "model.safetensors")
    (folder / "lineage.json").write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("tamper", "sentence"),
    [
        (flip, "model.safetensors was changed"),
        (forge, "does not hold what the last step of lineage.json made (changed)"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "tokenizer.json was changed"),
    ],
)
@pytest.mark.parametrize("form", ["hf", "gguf"])
def test_a_tampered_artifact_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str, tamper: Callable[[Path], Any], sentence: str
) -> None:
    artifact = made.artifact(tmp_path, made.half)
    tamper(artifact.path)
    assert main(["export", str(artifact.path), "--to", form, "--output", str(tmp_path / "out")]) == 2
    assert sentence in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))


def test_an_unsigned_artifact_is_refused_where_signers_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact, signers = made.artifact(tmp_path, made.dense), tmp_path / "signers"
    signers.write_text(keys.Signer("alice", keys.create(tmp_path / "alice.pem", elliptic=False)).line)
    words = ["export", str(artifact.path), "--to", "hf", "--output", str(tmp_path / "out"), "--signers", str(signers)]
    assert main(words) == 2
    assert "the artifact is not signed" in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))


def test_an_existing_output_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifact, out = made.artifact(tmp_path, made.dense), tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("mine")
    assert main(["export", str(artifact.path), "--to", "hf", "--output", str(out)]) == 2
    assert f"{out} exists already: name a new directory" in capsys.readouterr().err
    assert [file.name for file in out.iterdir()] == ["mine"]


def test_a_full_disk_leaves_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = made.artifact(tmp_path, made.dense)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "weights")

    monkeypatch.setattr("server.artifact.export.huggingface.copy_files", full)
    assert main(["export", str(artifact.path), "--to", "hf", "--output", str(tmp_path / "out")]) == 2
    assert "weights cannot be written: No space left on device" in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))


def test_memory_is_one_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor is asked for while an earlier one is still held."""
    artifact = made.artifact(tmp_path, made.codes(4, 32))
    whole, alive = Artifact.tensor, set[int]()

    def tensor(self: Artifact, name: str) -> torch.Tensor:
        result = whole(self, name)
        assert len(alive) <= 1
        alive.add(id(result))
        weakref.finalize(result, alive.discard, id(result))
        return result

    monkeypatch.setattr(Artifact, "tensor", tensor)
    for form in ("hf", "compressed-tensors"):
        made.export(artifact, form)
    with safe_open(artifact.path.with_name("artifact-hf") / "model.safetensors", framework="pt") as file:
        assert len(list(file.keys())) == len(artifact.names())
