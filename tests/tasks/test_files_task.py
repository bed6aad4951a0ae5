"""Data sets as tasks: every form of a row, and errors that come before work starts and name the line."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from segpo_core.pictures import as_rgb
from segpo_core.tasks import load_task as load
from segpo_core.tasks.files import spread
from segpo_core.tasks.rewards import answer_reward, format_reward, math_reward


def load_task(path: str, **settings):
    """In the file's order: most tests here look at a certain row."""
    if path != "shapes":
        settings = {"shuffle_dataset": False, "spread_eval": False} | settings
    return load(path, **settings)


COLOURS = [(255, 0, 0), (0, 0, 255)]


def png(colour=COLOURS[0], mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), colour).convert(mode).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for i, colour in enumerate(COLOURS):
        (tmp_path / "images" / f"{i}.png").write_bytes(png(colour))
    return tmp_path


def jsonl(folder: Path, rows: list[dict], name: str = "data.jsonl") -> str:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def rows(n: int, **more) -> list[dict]:
    return [{"prompt": f"What is {i} + 1?", "answer": i + 1} | more for i in range(n)]


def test_text_only(folder: Path) -> None:
    task = load_task(jsonl(folder, rows(20, level="easy", completions="x")), system_prompt="Think.")
    assert (task.name, task.train_size, task.eval_size) == ("data", 18, 2)
    assert task.train(3) == {
        "prompt": [{"role": "system", "content": "Think."}, {"role": "user", "content": "What is 3 + 1?"}],
        "images": [],
        "answer": "4",
        "id": "data/train/3",
        "level": "easy",
        "prompt_text": "What is 3 + 1?",
    }
    assert task.train(18 + 3) == task.train(3) and task.eval(0)["id"] == "data/eval/18" and task.eval(2) == task.eval(0)
    assert task.inspect(task.train(0), "x") is None


def test_held_out_rows(folder: Path) -> None:
    path = jsonl(folder, rows(10))
    task = load_task(path, eval_rows=4)
    seen = [{get(i)["answer"] for i in range(20)} for get in (task.train, task.eval)]
    assert seen == [{str(i) for i in range(1, 7)}, {str(i) for i in range(7, 11)}]
    task = load_task(path, eval_path=jsonl(folder, [{"prompt": "?", "answer": "x", "id": "other-1"}], "other.jsonl"))
    assert (task.train_size, task.eval_size, task.eval(0)["id"]) == (10, 1, "other-1")
    for n in (0, 10):
        with pytest.raises(ValueError, match=f"eval_rows={n} are to be held out; at least one"):
            load_task(path, eval_rows=n)


@pytest.mark.parametrize("name", ["image", "images", "picture"])
@pytest.mark.parametrize("value", ["images/1.png", ["images/1.png"], {"path": "images/1.png", "bytes": None}])
def test_one_image(folder: Path, name: str, value: object) -> None:
    settings = {"images_column": name} if name == "picture" else {}
    task = load_task(jsonl(folder, rows(2, **{name: value})), **settings)
    problem = task.train(0)
    (image,) = problem["images"]
    assert image.mode == "RGB" and image.getpixel((0, 0)) == COLOURS[1]
    text = {"type": "text", "text": "What is 0 + 1?"}
    assert problem["prompt"] == [{"role": "user", "content": [{"type": "image"}, text]}]
    assert set(problem) == {"prompt", "prompt_text", "images", "answer", "id"}


def test_several_images_in_their_places(folder: Path) -> None:
    row = {"prompt": "Is <image> left of <image>?", "answer": "no", "images": ["images/0.png", "images/1.png"]}
    task = load_task(jsonl(folder, [row, row | {"prompt": "Same?"}, row]), system_prompt="Look.")
    problem = task.train(0)
    assert [image.getpixel((0, 0)) for image in problem["images"]] == COLOURS
    content = problem["prompt"][1]["content"]
    assert [part.get("text", part["type"]) for part in content] == ["Is ", "image", " left of ", "image", "?"]
    assert problem["prompt"][0] == {"role": "system", "content": [{"type": "text", "text": "Look."}]}
    content = task.train(1)["prompt"][1]["content"]
    assert [part.get("text", part["type"]) for part in content] == ["image", "image", "Same?"]


def test_pictures_are_what_a_person_sees(folder: Path) -> None:
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    clear.putpixel((3, 3), (0, 0, 0, 255))
    clear.save(folder / "rgba.png")
    clear.convert("LA").save(folder / "la.png")
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([0, 0, 0, 255, 0, 0] + [0] * 762)
    palette.putpixel((3, 3), 1)
    palette.save(folder / "p.gif", transparency=0)
    Image.fromarray(np.full((8, 8), 128 * 257, dtype=np.uint16)).save(folder / "deep.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    turned = Image.new("RGB", (64, 32), "white")
    turned.paste((255, 0, 0), (0, 0, 16, 32))
    turned.save(folder / "turned.jpg", exif=exif, quality=95)
    names = ["rgba.png", "la.png", "p.gif", "deep.png", "turned.jpg"]
    task = load_task(jsonl(folder, [{"prompt": "?", "answer": "x", "image": name} for name in [*names, "la.png"]]))
    pictures = [task.train(i)["images"][0] for i in range(5)]
    white, black, red = (255, 255, 255), (0, 0, 0), (255, 0, 0)
    seen = [(p.getpixel((0, 0)), p.getpixel((3, 3))) for p in pictures[:4]]
    assert seen == [(white, black), (white, black), (white, red), ((128,) * 3, (128,) * 3)]
    assert pictures[4].size == (32, 64) and pictures[4].getpixel((16, 2))[1] < 30 < pictures[4].getpixel((2, 60))[1]
    assert all(as_rgb(p) is p and not p.info for p in pictures), "nothing is left to be applied a second time"


def test_messages_as_prompt(folder: Path) -> None:
    parts = [{"type": "text", "text": "What?"}, {"type": "image"}]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": parts}]
    row = {"prompt": messages, "answer": "red", "image": "images/0.png"}
    task = load_task(jsonl(folder, [row, row]), system_prompt="not used: there is one")
    system = {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
    assert task.train(0)["prompt"] == [system, {"role": "user", "content": parts}]


def test_parquet(folder: Path) -> None:
    image = {"bytes": png(COLOURS[1], "P"), "path": "x.png"}
    data = [{"question": f"q{i}", "solution": "yes", "image": image} for i in range(5)]
    pq.write_table(pa.Table.from_pylist(data), folder / "data.parquet")
    task = load_task(str(folder / "data.parquet"), prompt_column="question", answer_column="solution", eval_rows=2)
    problem = task.eval(0)
    assert problem["prompt"][0]["content"][1]["text"] == "q3" and problem["answer"] == "yes"
    assert problem["images"][0].mode == "RGB" and problem["images"][0].getpixel((0, 0)) == COLOURS[1]
    (folder / "data.parquet").write_bytes(b"PAR1 but no more")
    with pytest.raises(ValueError, match="data.parquet cannot be read"):
        load_task(str(folder / "data.parquet"))


def test_saved_data_set(folder: Path) -> None:
    images = [Image.open(io.BytesIO(png(colour))) for colour in COLOURS]
    data = datasets.Dataset.from_list([{"prompt": "Colour?", "answer": "x", "images": images}] * 3)
    data = data.cast_column("images", datasets.Sequence(datasets.Image()))
    datasets.DatasetDict({"train": data, "test": data.select([0])}).save_to_disk(str(folder / "saved"))
    task = load_task(str(folder / "saved"), eval_split="test")
    assert (task.train_size, task.eval_size) == (3, 1)
    assert [image.getpixel((0, 0)) for image in task.eval(0)["images"]] == COLOURS
    with pytest.raises(ValueError, match="no split 'dev'; there are: train, test"):
        load_task(str(folder / "saved"), eval_split="dev")


def test_rows_are_shuffled_and_held_out_rows_spread_over_a_sorted_file(folder: Path) -> None:
    path = jsonl(folder, [{"prompt": "?", "answer": str(i), "kind": "abc"[i // 50]} for i in range(150)])
    task = load(path, eval_rows=30)
    passes = [[int(task.train(120 * k + i)["answer"]) for i in range(120)] for k in range(3)]
    held_out = [int(task.eval(i)["answer"]) for i in range(30)]
    assert {frozenset(p) for p in passes} == {frozenset(range(150)) - set(held_out)} and len(set(held_out)) == 30
    assert len({tuple(p) for p in passes}) == 3 and sorted(passes[0]) not in passes
    assert {i // 50 for i in held_out} == {0, 1, 2} and held_out != sorted(held_out)
    again = load(path, eval_rows=30)
    assert [int(again.train(i)["answer"]) for i in range(120)] == passes[0]
    assert [int(again.eval(i)["answer"]) for i in range(30)] == held_out
    even = load(path, eval_rows=30, stratify_by_column="kind")
    for first in (3, 15, 30):
        assert Counter(even.eval(i)["kind"] for i in range(first)) == dict.fromkeys("abc", first // 3)
    plain = load(path, eval_rows="30", shuffle_dataset="false", spread_eval="false")  # as the command line gives them
    assert [plain.train(120 + i)["answer"] for i in range(2)] == ["0", "1"] and plain.eval(0)["answer"] == "120"
    with pytest.raises(ValueError, match=r"no column 'sort'.*set stratify_by_column"):
        load(path, stratify_by_column="sort")
    for setting, value in (("eval_rows", "many"), ("spread_eval", "perhaps")):
        with pytest.raises(ValueError, match=f"{setting} is '{value}'"):
            load(path, **{setting: value})


def test_a_stratum_has_its_share() -> None:
    strata = ["rare"] * 7 + ["common"] * 93
    for n in (10, 50, 100):
        drawn = spread(100, strata)[:n]
        assert abs(sum(i < 7 for i in drawn) - 0.07 * n) < 0.6


def test_answers_of_the_data_sets_own_types(folder: Path) -> None:
    def answer(value: object, **settings) -> object:
        pq.write_table(pa.table({"prompt": ["?"] * 2, "answer": [value] * 2}), folder / "a.parquet")
        return load_task(str(folder / "a.parquet"), **settings).train(0)["answer"]

    assert [answer(v) for v in (5, 2.5, True, ["blue"], ["14", "fourteen"])] == [
        "5", "2.5", "true", "blue", ["14", "fourteen"]]  # fmt: skip
    assert answer({"ground_truth": "72", "style": "rule"}) == "72"
    for value, message in (
        ("  ", "row 0: 'answer' is an empty text"),
        ([], "row 0: 'answer' is list"),
        ({"a": 1, "b": 2}, "row 0: 'answer' is an object with a, b; an answer is"),
        (float("nan"), "row 0: 'answer' is float nan"),
        (b"5", "row 0: 'answer' is bytes"),
    ):
        with pytest.raises(ValueError, match=message):
            answer(value)


@pytest.mark.parametrize("form", ["torch", "numpy"])
def test_a_saved_format_changes_nothing(folder: Path, form: str) -> None:
    messages = [{"role": "user", "content": "What?"}]
    data = datasets.Dataset.from_dict({"prompt": [messages] * 2, "answer": [5] * 2})
    data.set_format(form)
    data.save_to_disk(str(folder / form))
    problem = load_task(str(folder / form)).train(0)
    assert problem["prompt"] == messages and problem["answer"] == "5"


def test_a_null_in_a_late_row_is_said_before_work_starts(folder: Path) -> None:
    for name in ("answer", "prompt"):
        late = pa.array([None if i == 1500 else "x" for i in range(1600)])
        table = {"prompt": ["?"] * 1600, "answer": ["x"] * 1600} | {name: late}
        pq.write_table(pa.table(table), folder / "late.parquet")
        with pytest.raises(ValueError, match=f"late.parquet, row 1500 has no '{name}'"):
            load_task(str(folder / "late.parquet"))


def test_which_reward(folder: Path) -> None:
    def reward(answer: object, **settings):
        (func,) = load_task(jsonl(folder, rows(3, answer=answer)), **settings).reward_funcs
        return func

    assert reward(3) is math_reward and reward("\\sqrt{2}") is math_reward and reward("red") is answer_reward
    assert reward(3, reward="format_reward") is format_reward
    with pytest.raises(ValueError, match="unknown reward function 'nice'"):
        reward(3, reward="nice")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "a", "answer": 1}\n\n{"prompt": "b", "answer"\n', "data.jsonl, line 3 is not JSON"),
        ('{"prompt": "a", "answer": 1}\n[1]\n', "data.jsonl, line 2 is not an object"),
        ('{"prompt": "a", "answer": 1}\n\n{"prompt": "b"}\n', "data.jsonl, line 3 has no 'answer'"),
        ('{"prompt": "a", "answer": null}\n', "data.jsonl, line 1 has no 'answer'"),
        ('{"prompt": 5, "answer": 1}\n', "data.jsonl, line 1: 'prompt' is neither a text nor a list of messages"),
        ('{"question": "a", "answer": 1}\n', r"has no column 'prompt'; it has: question, answer \(set prompt_column\)"),
        ('{"prompt": "a", "answer": 1, "image": "none.png"}\n', "line 1, column 'image': .*none.png does not open"),
        ('{"prompt": "<image>?", "answer": 1}\n', "line 1: 1 image places in 'prompt' for 0 images"),
        ("\n", "data.jsonl has no rows"),
        ('{"prompt": "a", "answer": 1}\n', "at least one row must be left"),
    ],
)
def test_errors_before_work_starts(folder: Path, text: str, message: str) -> None:
    (folder / "data.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_task(str(folder / "data.jsonl"))


def test_images_that_do_not_open(folder: Path) -> None:
    (folder / "images" / "cut.png").write_bytes(png()[:50])
    (folder / "images" / "text.png").write_text("not an image")
    for name in ("cut", "text"):
        data = rows(3, image="images/0.png")
        data[1]["image"] = f"images/{name}.png"
        with pytest.raises(ValueError, match=rf"line 2, column 'image': the image .*{name}.png does not open"):
            load_task(jsonl(folder, data))
        # further down than what is looked at in advance: the same message when it is needed
        task = load_task(jsonl(folder, data), checked_rows=1)
        with pytest.raises(ValueError, match=rf"line 2, .*{name}.png does not open"):
            task.train(1)


def test_no_such_source(folder: Path) -> None:
    with pytest.raises(ValueError, match="none.jsonl: there is no such file"):
        load_task(str(folder / "none.jsonl"))
    (folder / "data.jsonl").write_bytes(b'{"prompt": "\xff"}\n')
    with pytest.raises(ValueError, match="data.jsonl is not UTF-8"):
        load_task(str(folder / "data.jsonl"))
    with pytest.raises(ValueError, match="owner/no-such-data-set cannot be read"):
        load_task("owner/no-such-data-set")
