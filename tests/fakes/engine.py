"""A server that answers as vLLM 0.32 does (its replies were recorded from the real one), with a model of transformers
behind it: real weights, read from the folders that it is told of, over real HTTP."""

from __future__ import annotations

import base64
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch
from peft import PeftModel
from PIL import Image
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from segpo_core.policy.load import load_model


class Engine:
    """A context: the server runs within it.

    `fail` holds what the next requests for tokens get instead of an answer: a status, or "drop" for a closed
    connection. `asked` counts requests by path. `image_tokens` is what one image token is expanded to; `misread` tokens
    are missing where the server says how it read a prompt.
    """

    def __init__(self, folder: Path, port: int = 0, logprobs_mode: str = "processed_logprobs", image_tokens: int = 9):
        self.folder, self.models = folder, {str(folder): load_model(folder)}
        self.base, self.adapters, self.logprobs_mode = str(folder), {}, logprobs_mode
        self.fail, self.asked, self.lock, self.image_tokens = [], {}, threading.Lock(), image_tokens
        self.misread = 0
        engine = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.answer({})

            def do_POST(self):
                self.answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def answer(self, body):
                path = self.path.partition("?")[0]
                with engine.lock:
                    engine.asked[path] = engine.asked.get(path, 0) + 1
                    failure = engine.fail.pop(0) if engine.fail and path == "/inference/v1/generate" else None
                    if failure == "drop":
                        self.connection.close()
                        return
                    status, said = (failure, error(failure, "out of luck")) if failure else engine.said(path, body)
                data = said.encode() if isinstance(said, str) else json.dumps(said).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()

    def said(self, path, body):
        if path == "/health":
            return 200, ""
        if path == "/v1/models":
            card = {"id": self.base, "object": "model", "root": self.base, "parent": None, "max_model_len": 512}
            return 200, {"object": "list", "data": [card]}
        if path == "/server_info":
            return 200, {"vllm_config": {"model_config": {"logprobs_mode": self.logprobs_mode}}}
        if path == "/v1/load_lora_adapter":
            name = body["lora_name"]
            if name in self.models:
                return 400, error(400, f"The lora adapter '{name}' has already been loaded.")
            self.models[name] = PeftModel.from_pretrained(load_model(self.folder), body["lora_path"]).eval()
            return 200, f"Success: LoRA adapter '{name}' added successfully."
        if path == "/v1/unload_lora_adapter":
            if self.models.pop(body["lora_name"], None) is None:
                return 404, error(404, "The lora adapter cannot be found.")
            return 200, "Success"
        if path == "/collective_rpc":
            assert body["method"] == "reload_weights"
            self.models[self.base] = load_model(body["kwargs"]["weights_path"])
            return 200, {"results": [None]}
        if path == "/reset_prefix_cache":
            return 200, {"success": True}
        if path == "/inference/v1/generate":
            return self.generate(body)
        return 404, error(404, "Not Found")

    @torch.no_grad()
    def generate(self, body):
        if "token_ids" not in body:
            return 400, error(400, "Field required")
        if body["model"] not in self.models:
            return 404, error(404, f"The model `{body['model']}` does not exist.")
        model, how = self.models[body["model"]], body["sampling_params"]
        ids, pixels = body["token_ids"], {}
        if parts := body.get("content_parts"):
            images = [Image.open(io.BytesIO(base64.b64decode(part["url"].partition(",")[2]))) for part in parts]
            token = model.config.image_token_id
            ids = [i for t in ids for i in [t] * (self.image_tokens if t == token else 1)]
            pixels = self.pixels(images)
        prompt, generator = list(ids), torch.Generator().manual_seed(how["seed"])
        bias = {int(token): value for token, value in how["logit_bias"].items()}
        content, reason, stop = [], "length", None
        for _ in range(how["max_tokens"]):
            logits = model(torch.tensor([ids]), **pixels).logits[0, -1].float()
            for token, value in bias.items():
                logits[token] += value
            logits, greedy = logits / (how["temperature"] or 1.0), how["temperature"] == 0
            if how.get("min_p") and not greedy:  # vLLM's order
                logits = MinPLogitsWarper(how["min_p"])(None, logits[None])[0]
            if how.get("top_k") and not greedy:
                logits = TopKLogitsWarper(how["top_k"])(None, logits[None])[0]
            if how.get("top_p", 1) < 1 and not greedy:
                logits = TopPLogitsWarper(how["top_p"])(None, logits[None])[0]
            logprobs = logits.log_softmax(-1)
            token = int(logprobs.argmax() if greedy else torch.multinomial(logprobs.exp(), 1, generator=generator))
            content.append({"token_id": token, "logprob": float(logprobs[token]), "rank": 1, "top_logprobs": []})
            ids = [*ids, token]
            if token in how["stop_token_ids"]:
                reason, stop = "stop", token
                break
        usage = {"prompt_tokens": len(prompt), "completion_tokens": len(content),
                 "prompt_tokens_details": {"cached_tokens": 0}}  # fmt: skip
        choice = {"index": 0, "finish_reason": reason, "stop_reason": stop, "token_ids": ids[len(prompt) :],
                  "logprobs": {"content": content}}  # fmt: skip
        whole = prompt[self.misread :] if body.get("return_token_ids") else None
        return 200, {"choices": [choice], "usage": usage, "prompt_token_ids": whole, "output_mode": "tokens"}

    def pixels(self, images):
        """What the model's own processor makes of images."""
        from segpo_core.policy.load import load_processor

        processor = load_processor(self.folder)
        return {"pixel_values": processor.image_processor(images=images, return_tensors="pt")["pixel_values"]}


def error(code: int, message: str) -> dict:
    return {"error": {"message": message, "type": "Error", "param": None, "code": code}}
