"""Methods, tasks and rewards of one's own, by name: on the command line, in a settings file, from a run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import segviz as sv
from segpo_core.afterwards.credit import recompute
from segpo_core.afterwards.trained import run_config, run_rewards, run_task
from segpo_core.cli import main, parse_train
from segpo_core.config import from_dict, method_class
from segpo_core.loading import absolute, load_object, names_code, spec_of
from segpo_core.record import store
from segpo_core.tasks import load_task
from segpo_core.tasks.rewards import load_reward, math_reward, spoken
from segviz.app.start import Settings
from tests.fakes import families

EXAMPLES = Path(__file__).parents[1] / "examples"
METHOD, TASK = f"{EXAMPLES}/own_method.py:Siblings", f"{EXAMPLES}/own_words.py:Ordering"


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return families.llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def run(llama, tmp_path_factory):
    """Trained by the command line, from a settings file that names all three by a relative place."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "luck.py").write_text(
        "class Luck:\n    def __call__(self, prompts, completions, **columns):\n"
        "        return [float(len(c[-1]['content']) % 2) for c in completions]\n"
    )
    for name in ("own_method.py", "own_words.py"):
        (folder / name).write_text((EXAMPLES / name).read_text())
    (folder / "mine.yaml").write_text(
        "method: own_method.py:Siblings\ndataset: own_words.py:Ordering\ndataset_args: {words: 2}\n"
        "reward_funcs: [luck.py:Luck]\nepsilon: 0.3\n"
    )
    command = [
        sys.executable, "-m", "segpo_core.cli", "train", "--config", "mine.yaml", "--model-name-or-path", str(llama),
        "--output-dir", "run", "--num-generations", "4", "--per-device-train-batch-size", "8", "--max-steps", "1",
        "--max-completion-length", "8", "--eval-size", "2", "--cpu",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder / "run"


def test_what_is_a_name_of_code():
    assert all(map(names_code, ("a.py:f", "/x y/a.py:F", "pkg.mod:Task", "mod:f")))
    assert not any(map(names_code, ("shapes", "owner/name", "a.jsonl", "C:/x", "a:b:c", "a.py", "<f>", None, 3)))


def test_the_run_is_recorded_so_that_it_opens_again(run, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    manifest = store.read_manifest(run)
    assert manifest["config"]["method"] == manifest["method"] == "siblings" and manifest["config"]["epsilon"] == 0.3
    assert manifest["method_code"].endswith("own_method.py:Siblings")
    assert sv.Run(run).method_label == "Siblings"
    rows = store.read_rollouts(run).to_pylist()
    assert len(rows) == 8 and {row["method"] for row in rows} == {"siblings"}
    assert json.loads(rows[0]["reward_parts"]).keys() == {"Luck"}
    config = run_config(run)
    assert config.method == "sapo", "without trust, no code of the run's is loaded"
    for load in (run_rewards, run_task):
        with pytest.raises(ValueError, match="names code that is not the toolkit's.*--trust-code"):
            load(config, run)
    trusted = run_config(run, trust_code=True)
    assert (trusted.algo.name, trusted.algo.epsilon) == ("siblings", 0.3)
    assert run_task(config, run, trust_code=True).words == 2
    assert run_rewards(config, run, trust_code=True)[0]([], [[{"content": "abc"}]]) == [1.0]


def test_its_credit_is_computed_again(run, tmp_path, capsys):
    with pytest.raises(ValueError, match="siblings is the run's own method: read .*own_method.py:Siblings"):
        recompute(run, ["siblings"])
    own = f"{run.parent}/own_method.py:Siblings"
    assert main(["credit", str(run), "--method", f"grpo,{own}"]) == 0
    again, recorded = (store.read_credit(run), store.read_rollouts(run).to_pylist())
    credit = {r["sample"] + 4 * r["group"]: r["advantages"] for r in again.to_pylist() if r["method"] == "siblings"}
    assert credit == {r["sample"] + 4 * r["group"]: r["advantages"] for r in recorded}
    assert main(["credit", str(run), "--method", "siblings", "--trust-code"]) == 0


def test_evaluate_takes_them(run, llama, capsys):
    small = ["--size", "2", "--samples", "0"]
    assert main(["evaluate", str(run), *small]) == 1 and "--trust-code" in capsys.readouterr().err
    assert main(["evaluate", str(run), "--trust-code", *small]) == 0
    assert "eval/answer" in json.loads(capsys.readouterr().out)
    luck = f"{run.parent}/luck.py:Luck"
    assert main(["evaluate", str(llama), "--dataset", TASK, "--dataset-args", "words", "4", "--reward-funcs", luck,
                 "--max-completion-length", "8", *small]) == 0  # fmt: skip
    assert json.loads(capsys.readouterr().out)["eval/answer"] == 0


def test_flags_and_files_name_them():
    config = parse_train(["--method", METHOD, "--dataset", TASK, "--epsilon", "0.4"])
    assert (config.method, config.algo.name, config.algo.epsilon) == ("siblings", "siblings", 0.4)
    assert config.dataset == TASK
    own = from_dict({"methods": {"cutpoint_sapo": {"interval": 3}}}, method=f"{EXAMPLES}/own_method.py:CutpointSAPO")
    assert own.algo.interval == 3
    assert load_task(TASK, words="4").words == 4, "the command line gives texts"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("class Mine: pass", "is no method: it must be a subclass of segpo_core.algos.Method"),
        ("class Mine(Method): pass", "has no credit, name, title"),
        ("class Mine(Method):\n    name = 'grpo'; title = 'x'\n    def credit(self, r): ...", "one of the toolkit's"),
        ("class Mine(Method):\n    name = '../x'; title = 'x'\n    def credit(self, r): ...", "a name has letters"),
        ("@dataclass(frozen=True)\nclass Mine(Method):\n    seed: int = 1\n    name = 'm'; title = 'x'\n"
         "    def credit(self, r): ...", "has a setting 'seed', which is the run's"),
        ("def other(): ...", "has no Mine; it has: other"),
        ("1 / 0", "cannot load .*ZeroDivisionError"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_method_is_said(tmp_path, body, message):
    (tmp_path / "m.py").write_text(f"from dataclasses import dataclass\nfrom segpo_core.algos import Method\n{body}\n")
    with pytest.raises(ValueError, match=message):
        method_class(f"{tmp_path}/m.py:Mine")


def test_what_is_wrong_with_a_task_or_a_reward_is_said(tmp_path):
    (tmp_path / "t.py").write_text(
        "class Half:\n    name = 'x'\n    def train(self, i): ...\n"
        "class Needs:\n    def __init__(self, a): ...\nN = 3\n"
    )
    with pytest.raises(ValueError, match="has no train_size, eval_size, reward_funcs, eval, inspect"):
        load_task(f"{tmp_path}/t.py:Half")
    with pytest.raises(ValueError, match="missing a required argument: 'a'; its settings are"):
        load_task(f"{tmp_path}/t.py:Needs")
    with pytest.raises(ValueError, match="unexpected keyword argument 'b'"):
        load_task(TASK, b=1)
    with pytest.raises(ValueError, match="Needs: the class cannot be made without arguments"):
        load_reward(f"{tmp_path}/t.py:Needs")
    with pytest.raises(ValueError, match="is int and cannot be called"):
        load_reward(f"{tmp_path}/t.py:N")


def test_objects_have_the_name_under_which_they_are_found(tmp_path):
    assert spoken(math_reward) == "math_reward"
    (tmp_path / "r.py").write_text(
        "def f(prompts, completions, **c): return [0.5]\nclass K:\n    __call__ = staticmethod(f)\n"
    )
    for name in ("f", "K"):
        func = load_reward(f"{tmp_path}/r.py:{name}")
        assert load_reward(spoken(func))([None], ["x"]) == [0.5] and spoken(func).endswith(f"r.py:{name}")
    assert spec_of(families.llama) == "tests.fakes.families:llama" and load_object(spec_of(families.llama), "x")
    assert spoken(lambda prompts, completions: [1.0]) == "<<lambda>>"
    with pytest.raises(ValueError, match="was a Python object that no file holds"):
        load_reward("<f>")
    assert absolute("shapes") == "shapes" and Path(absolute("a.py:f")).is_absolute()


def test_the_start_tab_takes_what_stands_beside_it(tmp_path, monkeypatch):
    monkeypatch.chdir(EXAMPLES.parent)
    flags = Settings("x", method="examples/own_method.py:Siblings", dataset="examples/own_words.py:Ordering").flags("f")
    assert parse_train(flags[1:]).algo.name == "siblings" and "examples/own_words.py:Ordering" in flags
    (tmp_path / "far.py").write_text("")
    for bad, message in (("nothing.py:X", "no file nothing.py"), (f"{tmp_path}/far.py:X", "outside the folder")):
        with pytest.raises(ValueError, match=message):
            Settings("x", method=bad)
        with pytest.raises(ValueError, match=message):
            Settings("x", dataset=bad)
    with pytest.raises(ValueError, match="or file.py:Class"):
        Settings("x", method="nothing")
