"""Model cards, and a checkpoint pushed to a hub of our own: a server here that speaks as much of the protocol."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub.constants
import pytest
import yaml

from segpo_core.algos import GRPO
from segpo_core.training import checkpoint, hub
from segpo_core.training.loop import Trainer
from tests.fakes import families
from tests.fakes.toy import ToyTask
from tests.training.test_loop import config_for


class Hub(BaseHTTPRequestHandler):
    """Takes repositories and commits; keeps what was sent."""

    kept: dict[str, bytes]

    def do_GET(self) -> None:
        self._answer({})

    def do_POST(self) -> None:
        body = self._body()
        if self.path == "/api/repos/create":
            name = f"me/{json.loads(body)['name']}"
            self._answer({"url": f"http://{self.headers['Host']}/{name}", "name": name, "id": "1"})
        elif "/preupload/" in self.path:
            files = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(body)["files"]]
            self._answer({"files": [file | {"shouldIgnore": False, "oid": None} for file in files]})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.kept[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self._answer({"commitUrl": f"http://{self.headers['Host']}/me/mine/commit/abc", "commitOid": "abc"})
        else:
            self._answer({})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(self, data: dict) -> None:
        body = json.dumps(data).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def served(monkeypatch):
    kept: dict[str, bytes] = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OurHub", (Hub,), {"kept": kept}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    yield kept
    server.shutdown()
    server.server_close()
    thread.join()


def card_of(text: str) -> tuple[dict, str]:
    """(what stands in its head, the rest)."""
    _, head, rest = text.split("---\n", 2)
    return yaml.safe_load(head), rest


def test_the_last_checkpoint_is_pushed_with_its_card(served, tmp_path):
    model = families.llama(tmp_path / "model")
    config = config_for(
        model, tmp_path / "mine", GRPO(), push_to_hub=True, eval_steps=1, eval_size=2, per_device_train_batch_size=4
    )
    trainer = Trainer(config, task=ToyTask(images=False))
    assert trainer.repository == "me/mine", "known before any work"
    trainer.run()
    last = checkpoint.latest(tmp_path / "mine" / "checkpoints")
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= served.keys()
    assert not {"optimizer.pt", "trainer.json"} & served.keys(), "only --resume needs these"
    for name, data in served.items():
        assert (last / name).read_bytes() == data, name
    head, rest = card_of(served["README.md"].decode())
    assert head == {
        "library_name": "transformers", "pipeline_tag": "text-generation",
        "tags": ["segpo", "reinforcement-learning", "grpo"],
    }  # fmt: skip
    assert "# mine, step 1" in rest and "| answer |" in rest and "AutoModelForCausalLM" in rest
    assert str(tmp_path) not in rest, "folders of this machine are nobody's business"


def test_a_run_that_goes_on_knows_its_last_evaluation(tmp_path):
    def trainer(out, steps, **more):
        config = config_for(model, tmp_path / out, GRPO(), max_steps=steps, per_device_train_batch_size=4,
                            eval_size=2, num_generations_eval=1, **more)  # fmt: skip
        return Trainer(config, task=ToyTask(images=False))

    model = families.llama(tmp_path / "model")
    first = trainer("run", 2, eval_steps=1)
    first.run()
    again = trainer("run", 3, eval_steps=0, resume=True)
    assert again.measured == first.measured and {"eval/answer", "eval_sampled/answer"} <= again.measured.keys()
    again.run()
    cards = [checkpoint.latest(tmp_path / "run" / "checkpoints").with_name(f"step-00000{i}") for i in (2, 3)]
    two, three = ((card / "README.md").read_text() for card in cards)
    assert "| answer |" in three and three == two.replace("step 2", "step 3")


def test_a_hub_that_is_not_there_is_said_before_anything_is_sampled(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    config = config_for(families.llama(tmp_path / "model"), tmp_path / "mine", GRPO(), push_to_hub=True)
    with pytest.raises(ValueError, match="push_to_hub: the hub gives no repository 'mine'.*hf upload NAME FOLDER"):
        Trainer(config, task=ToyTask(images=False))
    with pytest.raises(OSError, match="step-000001 is not on the hub .*hf upload me/mine .*step-000001"):
        (tmp_path / "step-000001").mkdir()
        hub.push(tmp_path / "step-000001", "me/mine")


def test_a_card_of_an_adapter_names_its_base():
    settings = {"model_name_or_path": "org/base", "use_peft": True, "method": "sapo", "output_dir": "runs/a|b"}
    head, rest = card_of(hub.model_card(settings, "SAPO (segment-aligned)", 7, {}, sees=True))
    assert head["base_model"] == "org/base" and head["library_name"] == "peft"
    assert "# a/b, step 7" in rest and "PeftModel" in rest and "held-out" not in rest
