"""pyproject.toml, constraints.txt, environment.yml, Makefile and .ci/run say the same thing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import segpo_core
import segviz
from segpo_core.cli import main

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MAKEFILE = (ROOT / "Makefile").read_text()


def pins() -> dict[str, str]:
    """Package name → version, from constraints.txt."""
    pinned = re.findall(r"^([^#=\s]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M)
    return {canonicalize_name(name): version for name, version in pinned}


def conda() -> tuple[list[str], list[str]]:
    """The conda packages and the pip lines of environment.yml."""
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    (pip,) = (entry["pip"] for entry in dependencies if isinstance(entry, dict))
    return [entry for entry in dependencies if isinstance(entry, str)], pip


def extras() -> set[str]:
    """The extras that the Makefile installs."""
    return set(re.search(r"^EXTRAS := (\S+)$", MAKEFILE, re.M)[1].split(","))


def make(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run make, free of the variables and flags of a make that these tests may run under."""
    inherited = {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "METHOD", "STEPS", "APP", "PYTHON"}
    env = {name: value for name, value in os.environ.items() if name not in inherited}
    return subprocess.run(["make", *arguments], cwd=cwd, env=env, capture_output=True, text=True, timeout=60)


EXTRAS = PROJECT["optional-dependencies"]
DECLARED = [*PROJECT["dependencies"], *EXTRAS["views"], *EXTRAS["dev"], *EXTRAS["docs"]]


@pytest.mark.parametrize("line", DECLARED)
def test_every_dependency_is_pinned_within_its_bounds(line: str) -> None:
    requirement = Requirement(line)
    assert requirement.specifier.contains(pins()[canonicalize_name(requirement.name)])


def test_conda_environment_agrees() -> None:
    packages, pip = conda()
    (python,) = (p.removeprefix("python=") for p in packages if p.startswith("python"))
    assert "pip" in packages
    assert SpecifierSet(PROJECT["requires-python"]).contains(python)
    assert "-c constraints.txt" in pip
    assert f"torch=={pins()['torch']}" in pip
    (editable,) = (Requirement("segpo" + p.removeprefix("-e .")) for p in pip if p.startswith("-e ."))
    assert editable.extras == extras() <= PROJECT["optional-dependencies"].keys()
    assert len(pip) == 3, "everything else comes from pyproject.toml"


def test_makefile_installs_torch_first_and_alone() -> None:
    installs = [line.strip() for line in MAKEFILE.splitlines() if line.strip().startswith("@$(PIP)")]
    assert installs[0] == "@$(PIP) -c constraints.txt torch"
    assert all("-c constraints.txt" in line for line in installs)


def test_no_package_index_is_named() -> None:
    for name in ("pyproject.toml", "constraints.txt", "environment.yml", "Makefile", ".ci/run"):
        assert not re.search(r"https?://|file://|index-url|find-links", (ROOT / name).read_text()), name


def test_ci_runs_what_make_test_runs() -> None:
    assert "\nmake test" in (ROOT / ".ci/run").read_text()
    assert os.access(ROOT / ".ci/run", os.X_OK)
    planned = make("-n", "test").stdout.replace("\\\n", " ")
    for part in ("OMP_NUM_THREADS=1", "-m pytest -n 2", "--cov=segpo_core", "--cov-fail-under=90"):
        assert part in planned


@pytest.mark.parametrize(
    ("given", "passed_on"),
    [
        ([], "segpo demo"),
        (["STEPS=3", "METHOD=grpo", "APP=0"], "segpo demo --method grpo --max-steps 3 --no-app"),
        (["APP=1"], "segpo demo"),
    ],
)
def test_demo_passes_its_options_on(given: list[str], passed_on: str) -> None:
    assert " ".join(make("-n", "demo", *given).stdout.splitlines()[-1].split()).endswith("bin/" + passed_on)


def test_help_is_the_default_and_lists_the_commands() -> None:
    listed = make().stdout
    assert all(f"make {name} " in listed for name in ("demo", "test", "lint", "docs", "bench", "clean"))


# A stand-in interpreter: `-m venv` copies it, every pip call is written down, and it stops where a file says.
FAKE_PYTHON = """#!/bin/sh
case "$1 $2" in
  "-c import"*) exit 0 ;;
  "-m venv") mkdir -p $3/bin; cp "$0" $3/bin/python; touch $3/bin/pip ;;
  "-m pip") echo "$*" >> pip.log; for last; do :; done; case "$(cat stop)" in "$last") exit 1 ;; esac ;;
esac
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "stop").write_text("nothing")
    (tmp_path / "python").write_text(FAKE_PYTHON)
    (tmp_path / "python").chmod(0o755)
    return tmp_path


def calls(clone: Path) -> int:
    return len((clone / "pip.log").read_text().splitlines())


def test_setup_runs_once_and_again_when_the_pins_change(clone: Path) -> None:
    assert make("setup", "PYTHON=./python", cwd=clone).returncode == 0
    assert calls(clone) == 2
    assert make("setup", "PYTHON=./python", cwd=clone).returncode == 0
    assert calls(clone) == 2
    with (clone / "constraints.txt").open("a") as file:
        file.write("# one more line\n")
    assert make("setup", "PYTHON=./python", cwd=clone).returncode == 0
    assert calls(clone) == 4


def test_interrupted_setup_is_done_again_from_nothing(clone: Path) -> None:
    (clone / "stop").write_text(f".[{re.search(r'^EXTRAS := (.+)$', MAKEFILE, re.M)[1]}]")
    assert make("setup", "PYTHON=./python", cwd=clone).returncode != 0
    (clone / ".venv/half-installed").touch()
    (clone / "stop").write_text("nothing")
    assert make("setup", "PYTHON=./python", cwd=clone).returncode == 0
    assert calls(clone) == 4
    assert not (clone / ".venv/half-installed").exists()


def test_old_python_is_refused_with_a_clear_message(clone: Path) -> None:
    (clone / "python").write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.1\nexit 1\n')
    result = make("test", "PYTHON=./python", cwd=clone)
    assert result.returncode != 0
    assert "needs Python 3.11 or newer, but './python' is: Python 3.9.1" in result.stderr
    assert not (clone / ".venv").exists()


def test_another_python_than_that_of_the_environment_is_not_passed_over(clone: Path) -> None:
    (clone / "other").write_text('#!/bin/sh\n[ "$1" != -V ] || echo Python 3.13.0\n')
    (clone / "other").chmod(0o755)
    assert make("setup", "PYTHON=./python", cwd=clone).returncode == 0
    refused = make("setup", "PYTHON=./other", cwd=clone)
    assert refused.returncode != 0 and "not ./other: remove it, or add VENV=build/other" in refused.stderr
    assert make("-n", "setup", "PYTHON=./other", "VENV=build/other", cwd=clone).returncode == 0
    assert make("setup", cwd=clone).returncode == 0, "what is there is used where no other is named"


def test_version_is_the_projects(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        installed = metadata.version("segpo")
    except metadata.PackageNotFoundError:
        pytest.skip("segpo is not installed here: run `make test`")
    assert segpo_core.__version__ == segviz.__version__ == installed == PROJECT["version"]
    assert main(["--version"]) == 0 and capsys.readouterr().out == f"segpo {installed}\n"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel in a virtual environment of its own, which borrows every other package; nothing is downloaded."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in listed.splitlines():
        if name.startswith(("segpo_core/", "segviz/", "configs/", "data/", "benchmarks/credit/")) or "/" not in name:
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", folder, source]
    subprocess.run([*pip, *build], check=True, capture_output=True, timeout=300)
    venv.create(folder / "venv", with_pip=False)
    (site,) = (folder / "venv").glob("lib/python*/site-packages")
    (wheel,) = folder.glob("segpo-*.whl")
    subprocess.run(
        [*pip, "--python", folder / "venv/bin/python", "install", "--no-deps", "--no-index", wheel],
        check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    (site / "others.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")  # after our own, so ours is found first
    return folder / "venv/bin/segpo"


def run_installed(segpo: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The installed command in `folder`, with nothing of the checkout in its environment."""
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")}
    env |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([segpo, *arguments], cwd=folder, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done


#: Runs a command where nothing that draws can be imported.
WITHOUT_VIEWS = """
import sys
class Missing:
    def find_spec(self, name, *rest):
        if name.partition(".")[0] in {missing}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
from segpo_core.cli import main
sys.exit(main(sys.argv[1:]))
"""


def without_views(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    missing = {Requirement(line).name for line in EXTRAS["views"]} | {"IPython", "traitlets"}
    code = WITHOUT_VIEWS.replace("{missing}", str(missing))
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=folder, env=env, capture_output=True, text=True, timeout=600
    )


@pytest.mark.slow
def test_training_needs_nothing_that_draws(tmp_path: Path) -> None:
    few = ["--max-steps", "1", "--eval-size", "2", "--per-device-train-batch-size", "8", "--cpu"]
    trained = without_views(tmp_path, "demo", "--no-app", *few)
    assert trained.returncode == 0, trained.stderr
    assert {path.name for path in (tmp_path / "runs" / "demo").glob("*.html")} == {"report.html", "beside.html"}
    said = without_views(tmp_path, "app", ".")
    assert said.returncode == 1 and "Traceback" not in said.stderr
    assert re.search(r"error: the views need \w+, which is not installed: pip install 'segpo\[views\]", said.stderr)


@pytest.mark.slow
def test_the_wheel_carries_what_the_demo_needs(installed: Path, tmp_path: Path) -> None:
    python = installed.with_name("python")
    code = "import segpo_core, segviz, segpo_core.shipped as s; print(segpo_core.__file__, segviz.__file__, s.ROOT)"
    where = subprocess.run([python, "-c", code], cwd=tmp_path, capture_output=True, text=True, env={}).stdout.split()
    assert all(Path(place).is_relative_to(installed.parents[1]) for place in where) and len(where) == 3
    for name in ("configs/demo.yaml", "configs/accelerate/fsdp2.yaml", "data/tiny-vlm/model.safetensors"):
        assert (Path(where[2]) / name).is_file()

    few = ["--max-steps", "1", "--eval-size", "2", "--cpu"]
    small = [*few, "--per-device-train-batch-size", "8"]
    run_installed(installed, tmp_path, "evaluate", "--size", "2", "--samples", "0")
    run_installed(installed, tmp_path, "train", "--config", "configs/demo.yaml", *small, "--output-dir", "runs/mine")
    run_installed(installed, tmp_path, "demo", "--no-app", "--alone", *small)
    assert {path.name for path in (tmp_path / "runs").glob("*.html")} or list((tmp_path / "runs/demo").glob("*.html"))
    assert (tmp_path / "runs/mine/checkpoints/step-000001/config.json").is_file()


def test_the_lock_and_the_list_of_licences_are_of_the_pinned_versions() -> None:
    """Made by docs/make_dependencies.py, which says how."""
    lock = (ROOT / "requirements.lock").read_text()
    locked = dict(re.findall(r"^([^#=\s]+)==(\S+) --hash=sha256:[0-9a-f]{64}$", lock, re.M))
    assert {canonicalize_name(name): version for name, version in locked.items()} == pins()
    table = (ROOT / "docs" / "dependencies.md").read_text()
    listed = dict(re.findall(r"^\| (\S+) \| (\d\S*) \| .+ \|$", table, re.M))
    assert {canonicalize_name(name): version for name, version in listed.items()} == pins()
