"""The checks of `make containers` and `make manifests`, without a container engine and without the validators."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import containers
import manifests
import pytest
from containers import MADE_BASE, SIDES, Sources, build_words, faults

ROOT = Path(__file__).parents[2]
IN_BOTH = [
    "etc/ssl/private/.placeholder",
    "usr/share/ca-certificates/mozilla/one.crt",
    "opt/pluralllm/lib/python3.11/site-packages/certifi/cacert.pem",
    "opt/pluralllm/lib/python3.11/site-packages/pyarrow/tests/conftest.py",
    "opt/pluralllm/lib/python3.11/site-packages/pluralllm/common/trust/identity.py",
    "opt/pluralllm/sbom.cdx.json",
    "usr/local/lib/python3.11/idlelib/tests/__init__.py",
]


@pytest.mark.parametrize("side", SIDES)
def test_an_image_may_hold_public_certificates_and_the_tests_of_other_packages(side: str) -> None:
    assert list(faults(side, [*IN_BOTH, f"opt/pluralllm/lib/python3.11/site-packages/pluralllm/{side}/a.py"])) == []


@pytest.mark.parametrize(
    ("path", "what"),
    [
        ("src/common/pyproject.toml", "sources"),
        ("opt/tests/conftest.py", "tests of this repository"),
        ("opt/pluralllm/lib/python3.11/site-packages/pluralllm/common/tests/test_one.py", "tests of this repository"),
        ("opt/.git/HEAD", "a history of sources"),
        ("var/lib/pluralllm/identity/credentials.pem", "a key or an identity"),
        ("var/lib/pluralllm/ann.invite", "a key or an identity"),
        ("root/.ssh/known_hosts", "a key or an identity"),
        ("etc/pip.conf", "settings of the machine that built it"),
        ("opt/pluralllm/lib/python3.11/site-packages/pluralllm/experiment/run.py", "research"),
    ],
)
@pytest.mark.parametrize("side", SIDES)
def test_an_image_holds_no_sources_tests_keys_settings_or_research(side: str, path: str, what: str) -> None:
    assert list(faults(side, [*IN_BOTH, path])) == [f"{what}: {path}"]


def test_an_image_holds_nothing_of_the_other_side_and_the_coordinators_no_torch() -> None:
    place = "opt/pluralllm/lib/python3.11/site-packages"
    for side, path in [
        ("server", f"{place}/torch/version.py"),
        ("server", f"{place}/pluralllm/client/main.py"),
        ("client", f"{place}/pluralllm/server/main.py"),
    ]:
        assert list(faults(side, [path])) == [f"the other side: {path}"]
    assert list(faults("client", [f"{place}/torch/version.py"])) == []


@pytest.mark.parametrize("missing", ["pluralllm/client/__main__.py", "opt/pluralllm/sbom.cdx.json"])
def test_an_image_without_its_own_package_or_its_list_of_packages_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], missing: str
) -> None:
    paths = [*IN_BOTH, "opt/pluralllm/lib/python3.11/site-packages/pluralllm/client/__main__.py"]
    monkeypatch.setattr(containers, "podman", lambda *_words: "516000000")
    monkeypatch.setattr(containers, "paths_of", lambda _image: paths)
    containers.check("client")
    assert capsys.readouterr().out == "localhost/pluralllm-client:check: 8 files, 516 MB\n"
    monkeypatch.setattr(containers, "paths_of", lambda _image: [path for path in paths if not path.endswith(missing)])
    with pytest.raises(SystemExit, match=f"holds no .*{missing}"):
        containers.check("client")
    monkeypatch.setattr(containers, "paths_of", lambda _image: [*paths, "etc/pip.conf"])
    with pytest.raises(SystemExit, match="holds 1 files that it must not hold:\n  settings of the machine"):
        containers.check("client")


def test_what_the_build_reads_of_this_machine_is_mounted_read_only_or_a_secret() -> None:
    sources = Sources("base@sha256:1", Path("/here/pip.conf"), ("/wheels", "/more"), "https://index.example")
    words = {side: build_words(side, sources) for side in SIDES}
    for side in SIDES:
        line = " ".join(words[side])
        assert "--build-arg BASE=base@sha256:1 " in line
        assert "--secret id=pip,src=/here/pip.conf --volume /wheels:/wheels:ro --volume /more:/more:ro " in line
        assert line.endswith(f"--file deploy/docker/{side}.Dockerfile --tag localhost/pluralllm-{side}:check {ROOT}")
        text = (ROOT / "deploy" / "docker" / f"{side}.Dockerfile").read_text()
        assert text.count("RUN --mount=type=secret,id=pip,target=/etc/pip.conf ") == text.count("--require-hashes") == 2
    assert "TORCH_INDEX=https://index.example" in words["client"]
    assert "TORCH_INDEX=https://index.example" not in words["server"], "the coordinator has no torch"
    assert "--secret" not in build_words("client", Sources("base"))


def script(name: str, folder: Path, **tools: str) -> "subprocess.CompletedProcess[str]":
    """Runs a script of deploy/ with a PATH that has nothing but some shell scripts."""
    folder.mkdir()
    for tool, text in tools.items():
        (folder / tool).write_text(f"#!/bin/sh\n{text}\n")
        (folder / tool).chmod(0o755)
    return subprocess.run(
        [sys.executable, str(ROOT / "deploy" / name)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PATH": str(folder)},
    )


def test_without_an_engine_or_a_base_image_nothing_counts_as_checked(tmp_path: Path) -> None:
    done = script("containers.py", tmp_path / "empty")
    assert (done.returncode, done.stderr) == (3, "not checked: there is no podman\n")
    done = script("containers.py", tmp_path / "no-base", podman="[ $1 = images ] || { echo no route >&2; exit 125; }")
    assert done.returncode == 3
    assert "cannot be pulled: no route\n" in done.stdout
    assert done.stderr == "not checked: no base image can be pulled, and there is no debootstrap to make one\n"


def test_a_build_that_fails_ends_the_check(tmp_path: Path) -> None:
    podman = 'case "$1" in build) exit 7;; *) echo base@sha256:1;; esac'
    done = script("containers.py", tmp_path / "fails", podman=podman)
    assert done.returncode == 1
    assert "base image: base@sha256:1\n" in done.stdout
    assert "exited with 7" in done.stderr


def test_a_base_image_that_has_been_made_is_used_again(tmp_path: Path) -> None:
    podman = 'case "$1" in pull) exit 1;; build) exit 7;; *) echo 672ae1eb3603;; esac'
    assert f"base image: {MADE_BASE}\n" in script("containers.py", tmp_path / "made", podman=podman).stdout


def test_a_base_image_that_is_made_holds_no_names_of_the_machine_that_made_it(tmp_path: Path) -> None:
    listing = tmp_path / "listing"
    podman = (
        'case "$1" in pull) exit 1;; build) exit 7;; '
        f'import) [ "$4" = {MADE_BASE} ] && /bin/tar -tf "$3" > {listing};; *) exit 0;; esac'
    )
    # Its last argument is the folder of the new system.
    debootstrap = (
        'for root; do :; done; /bin/mkdir -p "$root/etc"; cd "$root/etc"; : > os-release; : > resolv.conf; : > hostname'
    )
    done = script("containers.py", tmp_path / "makes", podman=podman, debootstrap=debootstrap)
    assert f"base image: {MADE_BASE}\n" in done.stdout, done.stderr
    assert sorted(listing.read_text().split()) == ["./", "./etc/", "./etc/os-release"]


def answering(report: str, asked: list[list[str]]) -> Callable[..., str]:
    def output_of(words: list[object], text: str | None = None) -> str:
        asked.append([str(word) for word in words])
        return "kind: Namespace\nspec: 1\n---\nkind: Service\n" if words[0] == "kubectl" else report

    return output_of


def test_every_kustomization_and_compose_file_is_validated(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    report = "INFO - passed for resource one\nINFO - passed for resource two\n"
    monkeypatch.setattr(manifests, "output_of", answering(report, asked))
    assert manifests.main(["other.yaml"]) == 0
    folders = [words[2] for words in asked if words[0] == "kubectl"]
    names = ["client", "coordinator", "overlays/client-gpu", "overlays/coordinator-postgresql-s3"]
    assert folders == [str(ROOT / "deploy" / "kubernetes" / name) for name in names]
    validations = [words for words in asked if words[0].endswith("kubernetes-validate")]
    assert len(validations) == len(folders) * len(manifests.VERSIONS)
    assert all("--strict" in words for words in validations)
    composed = [words[-1] for words in asked if words[0].endswith("check-jsonschema")]
    assert composed == [str(ROOT / "deploy" / "compose.yaml"), "other.yaml"]


def test_a_resource_without_a_schema_is_no_valid_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifests, "output_of", answering("INFO - passed for resource one\n", []))
    with pytest.raises(SystemExit, match="not all of 2 resources have a schema"):
        manifests.validate_kustomization(Path("folder"))


def test_a_validator_that_finds_a_fault_or_is_not_there_ends_the_check(tmp_path: Path) -> None:
    done = script("manifests.py", tmp_path / "none")
    assert done.returncode == 1
    assert "there is no kubectl here; nothing was validated" in done.stderr
    done = script("manifests.py", tmp_path / "fault", kubectl="echo unknown field >&2; exit 1")
    assert done.returncode == 1
    assert "unknown field" in done.stderr


def test_the_images_that_are_tried_are_those_that_are_built() -> None:
    target = (ROOT / "Makefile").read_text().partition("\ncontainers: ")[2].partition("\n\n")[0]
    assert target.index("deploy/containers.py") < target.index("PLURALLLM_CONTAINERS=1 ")
    assert "pytest tests/containers" in target
    assert list(containers.IMAGES) == ["server", "client"]


def test_ci_says_what_it_has_not_checked() -> None:
    text = (ROOT / ".ci" / "run").read_text()
    functions, _, stages = text.partition("\nstage chromium chromium\n")
    assert "\nstage site make site\nmanifests\ncontainers\n" in stages
    for name, condition in [("manifests", "> /dev/null; then"), ("containers", "= 1 ]; then")]:
        assert f'{condition} stage {name} make {name}; else echo "== {name}: not ' in functions
