"""A model before it is fetched, in every place where one may be."""

from pathlib import Path

import pytest

from reasongenrm.config import ModelConfig
from reasongenrm.data.model_look import look_at_model
from reasongenrm.errors import InputError
from reasongenrm.store.artifacts import Store
from tests.data.test_import_model import COMMIT, Hub, folder, hub, tiny  # noqa: F401 - fixtures

CONFIG = ModelConfig()


def test_folder_is_looked_at(folder: Path) -> None:  # noqa: F811
    look = look_at_model(CONFIG, str(folder))
    assert (look.chat_family, look.revision) == ("chatml", None)
    with pytest.raises(InputError, match="only models of the hub have one"):
        look_at_model(ModelConfig(revision="main"), str(folder))
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="a model folder without weights"):
        look_at_model(CONFIG, str(folder))


def test_model_in_s3_is_told_from_its_listing(store: Store, folder: Path) -> None:  # noqa: F811
    names = [path.name for path in folder.iterdir()]
    store.put_files({f"m/{name}": folder / name for name in names})
    assert look_at_model(CONFIG, store.uri_of("m")).chat_family == "chatml"
    store.delete(["m/model.safetensors"])
    with pytest.raises(InputError, match="without weights"):
        look_at_model(CONFIG, store.uri_of("m"))
    with pytest.raises(InputError, match="nothing is there"):
        look_at_model(CONFIG, store.uri_of("none"))


@pytest.mark.usefixtures("hub")
def test_weights_of_the_hub_stay_there(tmp_path: Path) -> None:
    look = look_at_model(CONFIG, "organisation/tiny")
    assert (look.chat_family, look.revision) == ("chatml", COMMIT)
    fetched = {path.name for path in (tmp_path / "cache").rglob("snapshots/*/*")}
    assert "tokenizer.json" in fetched
    assert not {name for name in fetched if name.endswith((".safetensors", ".bin", ".py"))}
    with pytest.raises(InputError, match=r"organisation/none .* the hub answers: 404"):
        look_at_model(CONFIG, "organisation/none")


@pytest.mark.usefixtures("hub")
def test_gated_model_says_to_log_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Hub, "is_gated", True)
    with pytest.raises(
        InputError, match=r"organisation/tiny at its newest revision: the hub answers: 403.*hf auth login"
    ):
        look_at_model(CONFIG, "organisation/tiny")


def test_gguf_file_is_told_by_its_first_bytes(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    with pytest.raises(InputError, match="no such file"):
        look_at_model(CONFIG, str(path))
    path.write_bytes(b"GGUF and more")
    assert look_at_model(CONFIG, str(path)).chat_family is None
    path.write_bytes(b"zip")
    with pytest.raises(InputError, match="a GGUF file begins with"):
        look_at_model(CONFIG, str(path))
