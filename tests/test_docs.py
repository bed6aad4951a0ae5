"""The documentation says what is so: its links lead somewhere, its tables are the code's, its examples run."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa
import pytest
import torch
import yaml

import segpo_core
import segviz as sv
from segpo_core.algos import METHODS, SAPO
from segpo_core.algos.base import CriticMethod, Method
from segpo_core.algos.vineppo import ChainMethod
from segpo_core.record import store
from segpo_core.segments import ends
from segpo_core.types import Rollouts
from segviz.show import theme
from tests.fakes import fake_run, families

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "data").glob("*.md"),
        *(ROOT / "benchmarks").glob("*.md"),
    ]
)
LINK = re.compile(r"!?\[[^\]]*\]\(([^()\s]+(?:\([^()]*\))?)\)")


def load(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TABLES = load(ROOT / "docs" / "make_tables.py")


def without_code(text: str) -> str:
    return re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.S)


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    heads = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page):
    for link in LINK.findall(without_code(page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = unquote(link).partition("#")
        path = (page.parent / target).resolve() if target else page
        assert path.exists() and path.is_relative_to(ROOT), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(path), f"{page.name}: {link}"


def test_the_index_has_every_page():
    index = ROOT / "docs" / "README.md"
    linked = {(index.parent / link).resolve() for link in LINK.findall(index.read_text(encoding="utf-8"))}
    assert {path for path in (ROOT / "docs").rglob("*.md")} - linked == {index}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_tables_are_todays(page):
    text = page.read_text(encoding="utf-8")
    assert TABLES.page(text) == text, "run: python docs/make_tables.py"


def test_every_setting_of_the_papers_methods_is_on_a_page():
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "methods").glob("*.md"))
    filled = {name for _, name, _ in TABLES.TABLE.findall(text)}
    assert {"Method", "CriticMethod", "ChainMethod", "PPO", "RLOO", "GRPO", "GSPO", "VinePPO", "SPOChain", "SPOTree",
            "SAPO", "SRPO"} <= filled  # fmt: skip
    rows = TABLES.settings(SAPO)
    assert "| `fraction` | 0.3 | k: the share" in rows and "| `epsilon_high` | 0.28 |" in rows and "`lam`" not in rows
    assert TABLES.settings(METHODS["rloo"]) == "No setting of its own: those of `Method`.\n"
    assert all(name in TABLES.settings(CriticMethod) for name in ("`lam`", "`critic`"))
    assert "`num_continuations` | 9" in TABLES.settings(ChainMethod) and "`beta` | 0.0" in TABLES.settings(Method)


def type_name(kind: pa.DataType) -> str:
    if pa.types.is_list(kind):
        return f"list of {type_name(kind.value_type)}"
    return {"float": "float32", "double": "float64"}.get(str(kind), str(kind))


@pytest.mark.parametrize("name", ["ROLLOUT_SCHEMA", "NODE_SCHEMA", "METRIC_SCHEMA"])
def test_the_run_directory_has_the_schemas_columns(name):
    text = (ROOT / "docs" / "run_directory.md").read_text(encoding="utf-8")
    table = text.split(f"<!-- schema: {name} -->\n")[1].split("\n\n")[0]
    told = re.findall(r"^\| `(\w+)` \| ([\w ]+) \|", table, re.M)
    assert told == [(field.name, type_name(field.type)) for field in getattr(store, name)]
    assert f"Schema version {store.SCHEMA_VERSION}." in text


def test_a_method_is_in_all_its_places():
    for name, method in METHODS.items():
        assert theme.METHODS.get(name) == method.title, f"segviz/show/theme.py: METHODS[{name!r}] is the method's title"
        assert method.__name__ in segpo_core.__all__, f"segpo_core/__init__.py: {method.__name__} is missing in __all__"
        assert getattr(segpo_core, method.__name__) is method


def test_a_view_is_in_the_front_door():
    for file in (ROOT / "segviz" / "views").glob("*.js"):
        if "\nDRAW." not in file.read_text(encoding="utf-8"):
            continue  # a part of a view's script
        home = {"groups": "group"}.get(file.stem, file.stem)
        assert home in sv.__all__ and callable(getattr(sv, home)), f"segviz/__init__.py: {home} is missing"


def test_the_site_has_every_page_and_what_it_links_to(tmp_path):
    site = load(ROOT / "docs" / "make_site.py")
    site.stage(tmp_path)
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    named = set(re.findall(r"[\w/]+\.md", str(settings["nav"])))
    there = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.md")}
    assert named <= there and {page for page in there if page.startswith("docs/")} <= named, "mkdocs.yml: nav"
    for page in tmp_path.rglob("*.md"):
        for link in LINK.findall(without_code(page.read_text(encoding="utf-8"))):
            assert ":" in link or (page.parent / unquote(link).partition("#")[0]).exists(), f"{page}: {link}"
    told = (tmp_path / "api.md").read_text(encoding="utf-8")
    assert "::: segpo_core.training.loop.train\n" in told and "::: segviz.views.ribbon.ribbon\n" in told
    assert told.count(":::") == len(segpo_core.__all__) + len(sv.__all__)


def blocks(page: str, language: str = "python") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.M | re.S)


def test_the_method_of_the_page_by_hand():
    (code,) = (block for block in blocks("your_method.md") if "class Reinforce" in block)
    page: dict = {"__name__": "page"}
    exec(code, page)
    mask = torch.tensor([[True, True], [True, False], [True, True], [True, True]])
    rollouts = Rollouts(
        completion_ids=mask.long(), mask=mask, group=torch.tensor([0, 0, 1, 1]), finished=mask[:, 0],
        sampled_logprobs=torch.zeros(4, 2), entropy=torch.zeros(4, 2), rewards=torch.tensor([1, 0, 1, torch.nan]),
    )  # fmt: skip
    credit = page["Reinforce"]().credit(rollouts)
    up, down = (1 / 3) / (3**-0.5 + 1e-4), (-2 / 3) / (3**-0.5 + 1e-4)
    wanted = torch.tensor([[up, up], [down, 0], [up, up], [torch.nan, torch.nan]])
    torch.testing.assert_close(credit.advantages, wanted, equal_nan=True)
    assert credit.loss_mask.tolist() == [[True, True], [True, False], [True, True], [False, False]]
    assert (credit.segment_ids == torch.where(mask, 0, -1)).all() and ends(credit.segment_ids).sum() == 4


def test_the_view_of_the_page_draws(tmp_path):
    (code,) = (block for block in blocks("your_view.md") if "def places" in block)
    page: dict = {}
    exec(code, page)
    run = sv.open(fake_run.write_run(tmp_path / "run"))
    figure = page["places"](run, bins=4)
    heights = list(figure.data[0].y)
    assert len(heights) == 4 and max(heights) > 0
    assert figure.save(tmp_path / "places.html").stat().st_size > 10_000


def test_the_task_of_the_page_trains(tmp_path):
    own_task = load(ROOT / "examples" / "own_task.py")
    clock = own_task.Clock()
    ids = {clock.train(i)["id"] for i in range(20)} | {clock.eval(i)["id"] for i in range(20)}
    assert len(ids) == 40 and clock.train(3)["images"][0].tobytes() == clock.train(3)["images"][0].tobytes()
    assert {clock.train(i)["answer"] for i in range(200)} == set("123456789")
    config = segpo_core.TrainConfig(
        method="grpo", algo=segpo_core.GRPO(), dataset="clock", output_dir=str(tmp_path / "run"), max_steps=2,
        model_name_or_path=str(families.llava(tmp_path / "llava")), num_generations=4, per_device_train_batch_size=8,
        max_completion_length=8, eval_steps=0, cpu=True,
    )  # fmt: skip
    segpo_core.train(config, task=clock)
    rows = store.read_rollouts(tmp_path / "run").to_pylist()
    assert len(rows) == 16 and all(row["example_id"].startswith("clock/train/") for row in rows)
