"""What sharing prefixes saves in an SPO tree: `python benchmarks/bench_tree.py [--device cuda]`.

A language model of random weights grows a tree (paper: 6-6-6, segments of 30 tokens). Measured:

* sampling: tokens through the model against the unique tokens of the tree, and against sampling every edge from its
  own prefix, computed anew;
* training (forward and backward over every edge of the tree): packed, one row a leaf, and one row an edge (prefix and
  segment, the way in which edges are training samples by themselves). The three are timed in turn, so that whatever
  else the machine does hits them alike; on a CPU, seconds are processor time.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from segpo_core.policy.critic import ActorCritic
from segpo_core.policy.inputs import Prompts, extend, position_ids
from segpo_core.policy.logprobs import backbone, token_logprobs
from segpo_core.policy.packing import pack
from segpo_core.prefix_tree import first_holders
from segpo_core.sampling.branches import grow_tree
from segpo_core.sampling.generate import InProcess
from segpo_core.sampling.sampler import Draw
from segpo_core.types import Rollouts, length_mask

VOCABULARY = 2048


class NumberSampler(InProcess):
    """A sampler whose tokens have no texts, so it needs no tokenizer."""

    def rollouts(self, draw: Draw, group: Tensor) -> Rollouts:
        mask = length_mask(draw.lengths, draw.ids.shape[1])
        return Rollouts(draw.ids, mask, group, draw.finished, draw.logprobs, draw.entropy)


def build(args: argparse.Namespace) -> tuple[ActorCritic, InProcess, Prompts]:
    """A policy of random weights that ends a completion after about `args.tail` tokens, and its prompts."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=args.hidden, intermediate_size=3 * args.hidden,
        num_hidden_layers=args.layers, num_attention_heads=args.hidden // 32, num_key_value_heads=args.hidden // 64,
        max_position_embeddings=8192,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(args.device, getattr(torch, args.dtype)).eval()
    network = ActorCritic(model, suppressed=[])
    eos = list(range(VOCABULARY // args.tail))
    sampler = NumberSampler(model, None, eos, [], max_completion_length=args.max_completion_length)
    ids = torch.randint(VOCABULARY, (args.prompts, 1, args.prompt_tokens))
    rows = tuple({"input_ids": row, "attention_mask": torch.ones_like(row)} for row in ids)
    return network, sampler, Prompts(rows, 0)


def by_rows(network: ActorCritic, prompts: Prompts, tree: Rollouts, spans: Tensor, batch: int) -> int:
    """Forward and backward over rows: long [n, 3], (row of the tree, first token that counts, end). Tokens it took."""
    tokens = 0
    for rows, start, end in (part.unbind(1) for part in spans.split(batch)):
        column = torch.arange(int(end.max()), device=rows.device)
        real, ids = column < end[:, None], tree.completion_ids[rows, : len(column)]
        counts = real & (column >= start[:, None])
        inputs = extend(prompts.batch(tree.group[rows], rows.device), ids, real)
        inputs["position_ids"] = position_ids(network.model, inputs)
        states = backbone(network.model)(**inputs, use_cache=False).last_hidden_state
        hidden = states[:, -len(column) - 1 : -1][counts]
        token_logprobs(hidden, network.head, ids[counts], 1.0)[0].sum().backward()
        tokens += int(prompts.lengths[tree.group[rows].cpu()].sum() + end.sum())
    return tokens


def packed(network: ActorCritic, prompts: Prompts, tree: Rollouts, batch: int, max_slots: int | None) -> int:
    """The same, packed; `batch` leaves a pass."""
    tokens, targets = 0, first_holders(tree.node_ids)
    for rows in torch.arange(len(tree), device=targets.device).split(batch):
        part = pack(network.model, prompts, tree, targets, rows, max_slots)
        network(part.inputs, part.ids, part.mask, part.predictor).logprobs.sum().backward()
        tokens += part.tokens
    return tokens


def timed(work: Callable[[], int], device: str) -> tuple[int, float]:
    """What `work` returns, and its seconds: on a CPU those of this process, so that others do not count; on a GPU
    those of the clock, the device's queue included."""
    if device == "cpu":
        begin = time.process_time()
        return work(), time.process_time() - begin
    torch.cuda.synchronize()
    begin = time.perf_counter()
    tokens = work()
    torch.cuda.synchronize()
    return tokens, time.perf_counter() - begin


def main(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    hardware = f"{platform.machine()} CPU, {args.threads} thread(s)"
    if args.device == "cuda":
        hardware = torch.cuda.get_device_name()
    network, sampler, prompts = build(args)
    parameters = sum(p.numel() for p in network.parameters())
    print(f"{hardware}, torch {torch.__version__}, {args.dtype}, Llama of {parameters / 1e6:.1f} M parameters, "
          f"{args.prompts} prompt(s) of {args.prompt_tokens} tokens, branch {args.branch}, "
          f"segments of {args.segment_tokens}")  # fmt: skip

    tree = grow_tree(sampler, prompts, args.branch, args.segment_tokens, (0, 0), max_rows=args.max_rows)
    nodes, inner = tree.tree, tree.tree.parent >= 0
    unique = int(prompts.lengths.sum() + (nodes.end - nodes.start).sum())
    prefix = prompts.lengths.to(nodes.start)[nodes.group] + nodes.start
    anew = int((prefix + nodes.end - nodes.start)[inner].sum())
    print(f"sampling: {len(tree)} leaves, {int(inner.sum())} edges, {unique} unique tokens; "
          f"{sampler.tokens_computed} computed, {sampler.tokens_computed / unique:.3f} a unique token "
          f"(prefix anew for every edge: {anew}, {anew / sampler.tokens_computed:.1f} times as many)")  # fmt: skip

    own = first_holders(tree.node_ids)
    holder = torch.zeros(len(nodes.parent), dtype=torch.long, device=own.device)
    holder[tree.node_ids[own]] = own.nonzero()[:, 0]
    leaves = torch.stack([torch.arange(len(tree), device=own.device), 0 * tree.lengths, tree.lengths], dim=1)
    edges = torch.stack([holder, nodes.start, nodes.end], dim=1)[inner]
    # Rows of about the same length together, the kindest way for the rows.
    leaves, edges = (spans[spans[:, 2].argsort()] for spans in (leaves, edges))
    ways = {
        "packed": lambda: packed(network, prompts, tree, args.batch, args.max_slots),
        "row a leaf": lambda: by_rows(network, prompts, tree, leaves, args.batch),
        "row an edge": lambda: by_rows(network, prompts, tree, edges, args.batch),
    }
    tokens, seconds = {}, {name: [] for name in ways}
    for repeat in range(args.repeats + 1):
        for name, work in ways.items():
            tokens[name], took = timed(work, args.device)
            network.zero_grad()
            if repeat:  # the first round warms up
                seconds[name].append(took)
    print(f"medians of {args.repeats}:")
    for name in ways:
        ratio = statistics.median(a / b for a, b in zip(seconds[name], seconds["packed"], strict=True))
        print(f"training, {name:11s}: {tokens[name]:8d} tokens ({tokens[name] / tokens['packed']:5.2f} x packed), "
              f"{statistics.median(seconds[name]):7.3f} s ({ratio:5.2f} x packed)")  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--branch", type=int, nargs="+", default=[6, 6, 6])
    parser.add_argument("--segment-tokens", type=int, default=30)
    parser.add_argument("--prompt-tokens", type=int, default=100)
    parser.add_argument("--prompts", type=int, default=1)
    parser.add_argument("--tail", type=int, default=60, help="mean length of an unbranched completion")
    parser.add_argument("--max-completion-length", type=int, default=200)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--batch", type=int, default=32, help="leaves, or rows, of one pass")
    parser.add_argument("--max-slots", type=int, help="longest packed sequence; default: as in training")
    parser.add_argument("--max-rows", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    main(parser.parse_args())
