"""The roles: what a completion owes to seeing and to thinking."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

import segviz as sv
from segpo_core.record.store import png_bytes
from tests.fakes.fake_run import HOSTILE, row
from tests.views import inert
from tests.views.made import Lists, seen, table


def test_the_summary_of_each_role_is_what_its_tokens_say():
    rollout = seen()
    ids, roles = rollout.row["role_ids"], table(sv.roles(rollout))
    assert set(roles) == {"other", "perception", "reasoning", "answer"}
    for number, name in ((1, "perception"), (2, "reasoning")):
        assert roles[name]["tokens"] == ids.count(number)
        assert roles[name]["share"] == pytest.approx(ids.count(number) / len(ids))
    assert (roles["perception"]["weight"], roles["reasoning"]["weight"]) == (1.5, 0.5)
    assert (roles["perception"]["contrast"], roles["reasoning"]["contrast"]) == (2.0, 0.25)
    assert roles["other"]["contrast"] is None and roles["answer"]["contrast"] is None
    sizes = [abs(a) for a in rollout.row["advantages"]]
    share = sum(a for a, r in zip(sizes, ids, strict=True) if r == 1) / sum(sizes)
    assert roles["perception"]["credit"] == pytest.approx(share)
    assert sum(row["credit"] for row in roles.values()) == pytest.approx(1)


@pytest.mark.parametrize(("kind", "name"), [("perception", "A seeing error"), ("reasoning", "A thinking error")])
def test_the_verdict_says_what_is_true_and_what_depends_more(kind, name):
    verdict = sv.roles(seen(kind)).data["verdict"]
    assert verdict[0].startswith(f"{name}: the first true error is at token ")
    assert verdict[1] == (
        "On average perception tokens depend more on what they should rest on "
        "(mean weight 1.50 for perception, 0.50 for reasoning)."
    )
    assert (
        verdict[2] == f"The error itself has weight {1.5 if kind == 'perception' else 0.5:.2f}, where 1 is the average."
    )


def test_without_a_true_error_it_does_not_invent_one():
    assert sv.roles(seen("right")).data["verdict"][0] == "No true error is known in it."
    unknown = dict.fromkeys(("truth", "answer_right", "perception_right", "reasoning_right", "error_kind"))
    assert "is not recorded" in sv.roles(seen("right", **unknown)).data["verdict"][0]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"role_ids": None}, "No roles are recorded"),
        ({"perception_contrast": None, "reasoning_contrast": None}, "No contrasts are recorded (SRPO)"),
        ({"perception_contrast": None, "weights": None}, "Only the contrast of reasoning was measured"),
    ],
)
def test_what_was_not_recorded_is_said(columns, said):
    assert said in sv.roles(seen(**columns)).data["verdict"][1]


def test_a_malformed_completion_has_uniform_weights_and_says_so():
    count = len(seen().pieces)
    view = sv.roles(seen(role_ids=[0] * count, weights=[1.0] * count))
    assert "malformed" in view.data["verdict"][1] and "weights are uniform" in view.data["verdict"][1]
    assert set(table(view)) == {"other"}


def test_a_contrast_that_was_not_measured_is_not_zero():
    rollout = seen()
    ids = rollout.row["role_ids"]
    blank = seen(perception_contrast=[None if r == 1 else 0.0 for r in ids], weights=None)
    view = sv.roles(blank)
    assert table(view)["perception"]["contrast"] is None
    assert any(f"At {ids.count(1)} perception tokens the contrast was not measured" in n for n in view.data["notices"])


def test_an_empty_completion_is_told():
    view = sv.roles(seen(text="", pieces=[]))
    assert view.data["verdict"] == ["The completion is empty."] and view.data["roles"] == []


def notices(view: sv.View) -> str:
    return " ".join(view.data["notices"])


def test_images_that_are_not_there_are_told_each_for_what_it_is():
    rollout = seen()
    assert "has no image" in notices(sv.roles(sv.Rollout(rollout.row | {"images": []}, {})))
    assert "is missing: ab" in notices(sv.roles(sv.Rollout(rollout.row, {})))
    assert "cannot be read: ab" in notices(sv.roles(sv.Rollout(rollout.row, {"ab": b"not an image"})))
    text_only = sv.Rollout(rollout.row | {"images": None, "prompt": json.dumps("1 + 1?")}, {})
    assert "nothing was seen" in notices(sv.roles(text_only)) and sv.roles(text_only).data["pictures"] == {}


def test_the_corrupted_image_is_shown_or_its_absence_told():
    image = Image.new("RGB", (48, 48), "#888")
    for given in (image, png_bytes(image)):
        view = sv.roles(seen(), corrupted=given)
        assert view.data["corrupted"]["src"].startswith("data:image/png;base64,") and "does not store" not in notices(
            view
        )
    assert sv.roles(seen()).data["corrupted"] is None and "which a run does not store" in notices(sv.roles(seen()))
    assert "does not store" not in notices(sv.roles(seen(perception_contrast=None)))
    assert "The corrupted image cannot be read" in notices(sv.roles(seen(), corrupted=b"no"))
    with pytest.raises(TypeError, match="corrupted is str: give a PIL image"):
        sv.roles(seen(), corrupted="image.png")


def test_the_strongest_patch_is_named_and_a_map_a_token_is_averaged_over_perception():
    rollout = seen()
    maps = np.zeros((len(rollout.pieces), 2, 3))
    maps[:, 0, 0] = 9.0
    for t, role in enumerate(rollout.row["role_ids"]):
        if role == 1:
            maps[t] = [[0, 0, 0], [0, 0.5, -1]]
    maps[2, 1, 1] = np.nan  # not measured at one of them: the mean is that of the others
    patches = sv.roles(rollout, patches=maps).data["patches"]
    assert patches["told"].startswith("Masking row 2, column 2 costs the ") and "+0.50 nats" in patches["told"]
    assert (patches["rows"], patches["cols"], patches["tokens"]) == (2, 3, len(rollout.pieces))
    assert patches["about"] == f"the {rollout.row['role_ids'].count(1)} perception tokens, mean"
    whole = sv.roles(rollout, patches=maps[0]).data["patches"]
    assert whole["tokens"] == 0 and [column[0] for column in whole["pack"]["columns"]] == ["mean"]


@pytest.mark.parametrize("shape", [(4,), (3, 2, 2), (0, 3), (65, 2)])
def test_patches_that_do_not_fit_are_refused(shape):
    with pytest.raises(ValueError, match="x".join(map(str, shape)) if len(shape) < 2 else f"{shape[0]} x {shape[1]}"):
        sv.roles(seen(), patches=np.zeros(shape))


def test_patches_that_were_not_measured_anywhere_name_no_strongest():
    assert sv.roles(seen(), patches=np.full((2, 2), np.nan)).data["patches"]["told"] is None


def test_the_contrasts_of_a_long_completion_come_along():
    pieces = [" w"] * 5000
    rollout = sv.Rollout(row(pieces=pieces, perception_contrast=[1.0] * 5000, role_ids=[1] * 5000))
    more = sv.roles(rollout).data["more"]
    assert more["columns"] == [["pc", "f2", 5000]]
    assert sv.roles(seen()).data["more"] is None


def test_the_static_page_has_the_table_the_text_and_nothing_that_runs():
    view = sv.roles(seen(), patches=np.ones((2, 2)))
    parsed = Lists(view.fallback)
    for text in ("mean contrast, nats", "1.50", "2.00", "<perception>", "A seeing error", "Masking row 1, column 1"):
        assert text in parsed.text
    count = len(HOSTILE)
    hostile = sv.Rollout(row(pieces=list(HOSTILE), role_ids=[1] * count, example_id=HOSTILE[1], method=HOSTILE[1]))
    assert "<img src=x" in inert.check(sv.roles(hostile).fallback)


def test_a_view_is_drawn_without_the_trainer():
    import subprocess
    import sys

    code = "import sys, segviz as sv; sv.tree, sv.roles; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_right_solution_is_not_asked_for_its_error():
    right = {"answer_right": True, "error_start": None, "error_end": None, "error_kind": None}
    titles = [sv.roles(sv.Rollout(seen().row | more)).title for more in (right, right | {"answer_right": False})]
    assert titles == ["Which tokens come from looking?", "A seeing error or a thinking error?"]
