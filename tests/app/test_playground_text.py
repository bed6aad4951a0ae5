"""The playground asks a language model: without a picture, about sums that it can judge, or in one's own words."""

import json

import pytest

from segpo_core.algos import GRPO
from segpo_core.config import TrainConfig
from segpo_core.policy.corruptions import KINDS
from segpo_core.training.loop import train
from tests.app.served import get, serving
from tests.app.test_playground import ended, page_data, post
from tests.fakes import families

WISH = {"run": "sums", "step": 1, "temperature": 1.0, "number": 2}


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    model = families.llama(folder / "model")
    train(
        TrainConfig(
            method="grpo", algo=GRPO(), model_name_or_path=str(model), dataset="arithmetic", num_generations=4,
            dataset_args={"largest": 9}, output_dir=str(folder / "runs" / "sums"), per_device_train_batch_size=4,
            max_completion_length=8, max_steps=1, eval_steps=0, save_steps=1, cpu=True,
        )
    )  # fmt: skip
    with serving(folder / "runs") as (address, _):
        yield address


def test_a_sum_is_asked_without_a_picture_and_judged(address):
    _, _, body = get(address, "/segpo/api/play")
    assert [(one["run"], one["text"]) for one in json.loads(body)["sources"]] == [("sums", True), (None, False)]
    _, _, body = get(address, "/segpo/api/play/problem?number=3&run=sums")
    problem = json.loads(body)
    first, second = map(int, problem["question"].partition("\n")[2].removesuffix(" =").split(" + "))
    assert problem["scene"] is None and max(first, second) <= 9, "as the run's own task asks"

    asked = ended(address, "ask", WISH | {"question": problem["question"]})
    assert asked["state"] == "done", asked["words"]
    result = asked["result"]
    assert result["answer"] == str(first + second) and result["picture"] is False
    assert all(one["reward"] == float(one["answer_right"]) for one in result["completions"])
    data = page_data(address, asked["job"])
    assert data["kind"] == "ribbon" and data["pictures"] == {} and "The answer is" in data["verdict"][0]

    on = ended(
        address, "resample", {"job": asked["job"], "completion": 0, "segment": 0, "where": "before", "number": 2}
    )
    assert on["state"] == "done", on["words"]
    status, said = post(address, "corrupt", {"job": asked["job"], "completion": 0, "corruption": KINDS[0]})
    assert status == 400 and "no picture to spoil" in said["error"]


def test_ones_own_words_have_no_verdict(address):
    asked = ended(address, "ask", WISH | {"question": "Which colour do you like?", "number": 1})
    assert asked["state"] == "done", asked["words"]
    assert asked["result"]["answer"] is None and asked["result"]["completions"][0]["reward"] is None
