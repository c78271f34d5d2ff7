"""What must be in the cluster first is pinned: every address names a version, the README says the same one.

There is no network where the tests run, so what they bring is not rendered; KFP has a stand-in.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.kube.schemas import CRDS
from tests.manifests import MANIFESTS, ROOT, render, rendered
from tests.manifests.test_requests import stand_in_for_kfp

THIRD_PARTY = MANIFESTS / "third-party"
FOLDERS = sorted(str(path.parent.relative_to(THIRD_PARTY)) for path in THIRD_PARTY.rglob("kustomization.yaml"))

_TAG = r"v?\d+\.\d+\.\d+"
_FOLDER = re.compile(rf"https://github\.com/[\w-]+/[\w-]+//[\w./-]+\?ref=({_TAG}|[0-9a-f]{{40}})")
_FILE = re.compile(rf"https://github\.com/[\w-]+/[\w-]+/releases/download/({_TAG})/[\w.-]+\.yaml")


def version(address: str) -> str:
    """The version that a remote address is pinned at; fails on a branch, `latest` or an address without one."""
    found = _FOLDER.fullmatch(address) or _FILE.fullmatch(address)
    assert found, f"{address}: expected ?ref=TAG, ?ref=COMMIT or releases/download/TAG/FILE"
    return found[1]


def addresses(folder: str) -> list[str]:
    kustomization = yaml.safe_load((THIRD_PARTY / folder / "kustomization.yaml").read_text(encoding="utf-8"))
    local = [item for item in kustomization["resources"] if not item.startswith("https://")]
    assert all((THIRD_PARTY / folder / item).exists() for item in local), local
    return [item for item in kustomization["resources"] if item.startswith("https://")]


def table() -> dict[str, str]:
    """Folder -> version, of the README."""
    text = (THIRD_PARTY / "README.md").read_text(encoding="utf-8")
    return dict(re.findall(r"^\| `([\w/-]+)` \| (\S+) \|", text, flags=re.MULTILINE))


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_address_is_pinned_at_the_version_of_the_readme(folder: str) -> None:
    versions = {version(address) for address in addresses(folder)}
    assert versions == {table()[folder]}


def test_readme_names_every_folder_and_no_other() -> None:
    assert sorted(table()) == FOLDERS
    assert {"cert-manager", "keda", "kfp", "kserve", "kueue", "trainer"} <= set(FOLDERS)


@pytest.mark.parametrize(
    "address",
    [
        "https://github.com/kserve/kserve//config/crd",
        "https://github.com/kserve/kserve//config/crd?ref=master",
        "https://github.com/kserve/kserve//config/crd?ref=v0.20",
        "https://github.com/kedacore/keda/releases/latest/download/keda.yaml",
        "https://github.com/kedacore/keda/releases/download/latest/keda.yaml",
    ],
)
def test_address_that_moves_is_found(address: str) -> None:
    with pytest.raises(AssertionError, match="expected"):
        version(address)


@pytest.mark.parametrize("folder", FOLDERS)
def test_images_that_are_set_have_a_version(folder: str) -> None:
    text = (THIRD_PARTY / folder / "kustomization.yaml").read_text(encoding="utf-8")
    tags = [item["newTag"] for item in yaml.safe_load(text).get("images", [])]
    tags += re.findall(r"value: [\w./-]+/[\w-]+:(\S+)", text)
    assert all(re.fullmatch(_TAG, tag) for tag in tags), tags


def test_script_is_clean_to_shellcheck() -> None:
    shellcheck = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([shellcheck, MANIFESTS / "crds.sh"], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout


def test_versions_of_the_crds_are_commits_or_tags() -> None:
    text = (MANIFESTS / "crds.sh").read_text(encoding="utf-8")
    commits = re.findall(r"^fetch [\w-]+/[\w-]+ (\S+)", text, flags=re.MULTILINE)
    assert len(commits) == 8
    kserve = re.search(r"^kserve=([0-9a-f]{40})", text, flags=re.MULTILINE)
    assert kserve
    assert all(re.fullmatch(r"[0-9a-f]{9,40}", commit) for commit in commits if commit != "$kserve")


def test_crds_that_are_fetched_are_those_that_the_checks_read() -> None:
    names = set()
    for group, kinds in re.findall(
        r"([\w.-]+)_\{?([\w,]+)\}?\.yaml", (MANIFESTS / "crds.sh").read_text(encoding="utf-8")
    ):
        names |= {f"{group}_{kind}.yaml" for kind in kinds.split(",")}
    if not CRDS.is_dir():
        pytest.skip(f"no CRDs here ({CRDS}); run `make crds`")
    assert names <= {path.name for path in Path(CRDS).glob("*.yaml")}  # and perhaps those that an older version read


def test_kfp_comes_without_launcher_settings_that_would_write_over_ours(tmp_path: Path) -> None:
    """KFP's ConfigMap: kubeflow/pipelines at 2.17.0, manifests/kustomize/base/pipeline/kfp-launcher-configmap.yaml."""
    folder = stand_in_for_kfp(tmp_path) / "third-party" / "kfp"
    assert "name: kfp-launcher" in (folder / "kfp.yaml").read_text(encoding="utf-8")
    assert {item["kind"] for item in render(folder)} == {"Deployment"}
    ours = [item["data"] for item in rendered("gpu") if item["metadata"]["name"] == "kfp-launcher"]
    assert [data.keys() for data in ours] == [{"defaultPipelineRoot", "providers"}]


def test_every_command_that_applies_an_overlay_names_our_field_manager() -> None:
    """For the manager "kubectl" the API server copies what is applied into the annotation of client-side applies, and
    KFP's next one deletes it: apimachinery eed236ceee, pkg/util/managedfields/internal/lastappliedupdater.go."""
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *MANIFESTS.rglob("*.md"), *MANIFESTS.rglob("*.sh")]
    commands = [
        line
        for page in pages
        for line in page.read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
        if re.search(r'\b(apply|diff) +(-k \S*overlays/|"\$overlay")', line)
    ]
    assert len(commands) >= 6
    for line in commands:
        assert "--server-side --field-manager=reasongenrm --force-conflicts" in line, line
