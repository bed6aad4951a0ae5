"""The command line: `segpo train`, `demo`, `evaluate`, `credit`, `app`, `report`, `warmup`."""

from __future__ import annotations

import argparse
import errno
import json
import logging
import os
import re
import signal
import subprocess
import sys
from dataclasses import fields
from datetime import datetime
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.logging import RichHandler

import segpo_core
from segpo_core.shipped import ROOT

if TYPE_CHECKING:  # the commands import what they need: torch takes seconds, `segpo --help` should not
    from segpo_core.config import TrainConfig
    from segpo_core.training.loop import Trainer

COMMANDS = {
    "train": "train a policy (settings from a YAML file and flags; `segpo train --help` lists them all)",
    "demo": "train the small embedded policy, beside GRPO, watch both in the app, and write a report",
    "evaluate": "measure a model or a checkpoint on held-out problems",
    "credit": "compute other methods' credit for a run's recorded rollouts",
    "bench-learn": "measure which method learns what, from short runs of each",
    "bench-credit": "measure how right methods' credit is, on completions whose true values are known",
    "app": "watch runs in a browser while they train: curves, every rollout, comparisons",
    "report": "write one offline HTML file about a run",
    "warmup": "make the small embedded policy from nothing",
}

#: Controls (but not new line and tab), marks that turn the direction of writing, and bytes that were no UTF-8.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

_TRUST_CODE = {"action": "store_true", "help": "load the files and modules that the run names, and run what is in them"}


def main(argv: list[str] | None = None) -> int:
    """Run a command. Returns the exit code: 0; 1 for an error that was told in one message; 143 or 129 for a training
    that SIGTERM or SIGHUP ended, after saving."""
    argv = list(sys.argv[1:] if argv is None else argv)
    handler = RichHandler(show_path=False)
    handler.setFormatter(_Formatter("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    if not argv or argv[0] in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        print("usage: segpo COMMAND [FLAGS]\n")
        print("\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()))
        return 0
    if argv[0] == "--version":
        print(f"segpo {segpo_core.__version__}")
        return 0
    command, rest = argv[0], argv[1:]
    if command not in COMMANDS:
        return _fail(f"unknown command {command!r}; known: {', '.join(COMMANDS)}")
    try:
        return globals()[f"_{command.replace('-', '_')}"](rest)
    except (ValueError, FileNotFoundError, ImportError) as error:
        return _fail(str(error))
    except BrokenPipeError:  # `segpo train --help | head`: who reads has enough
        sys.stdout = open(os.devnull, "w")  # what is still buffered has no reader; the interpreter flushes as it ends
        return 0
    except OSError as error:
        if error.errno == errno.ENOSPC:
            return _fail(
                f"no space left on the disk ({error.filename or 'writing the run'}); what was written before is whole"
            )
        return _fail(str(error))
    except KeyboardInterrupt:
        return _fail("interrupted")


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return _visible(super().format(record))


def _visible(text: str) -> str:
    """What a message quotes from a file must not steer the terminal: its control characters are written out."""
    return _CONTROLS.sub(lambda m: m[0].encode("unicode_escape").decode(), text)


def _fail(message: str) -> int:
    Console(stderr=True).print("error:", _visible(message), style="bold", markup=False, highlight=False, soft_wrap=True)
    return 1


def parse_train(argv: list[str], prog: str = "segpo train", defaults: dict | None = None) -> TrainConfig:
    """A config from `--config FILE`, then flags. `--method` decides which method's settings there are."""
    import tyro

    from segpo_core.config import TrainConfig, from_dict, load_yaml
    from segpo_core.trl_names import RULES, TURNED

    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config")
    first.add_argument("--method")
    first.add_argument("--dataset-args", "--dataset_args", nargs="*", default=[])
    for name in TURNED | ({*RULES} - {item.name for item in fields(TrainConfig)}):  # TRL's, which tyro does not know
        first.add_argument(f"--{name.replace('_', '-')}", f"--{name}", nargs="*", dest=f"trl.{name}")
    known, rest = first.parse_known_args(argv)
    settings = dict(defaults or {})
    if known.config:
        settings |= load_yaml(known.config)
    settings |= {
        name[4:]: _value(words) for name, words in vars(known).items() if name[:4] == "trl." and words is not None
    }
    if known.dataset_args:
        settings["dataset_args"] = {**settings.get("dataset_args", {}), **_pairs(known.dataset_args)}
    config = from_dict(settings, known.config or "the settings", known.method)
    # tyro would make a flag of every name in them, some of which are fields of the run
    args_of_data, config.dataset_args = config.dataset_args, {}
    args_of_lora, config.lora_args = config.lora_args, {}
    of_template, config.chat_template_kwargs = config.chat_template_kwargs, {}
    config = tyro.cli(
        TrainConfig,
        default=config,
        args=rest,
        prog=prog,
        description=f"{TrainConfig.__doc__} --config FILE reads settings from YAML; flags go before it. "
        "--dataset-args NAME VALUE … gives settings of the data set, such as: prompt_column question. "
        f"The method's own settings are those of {config.algo.title}; --method NAME shows another's.",
        config=(tyro.conf.AvoidSubcommands, tyro.conf.OmitArgPrefixes),
    )
    config.dataset_args, config.lora_args = args_of_data, args_of_lora
    config.chat_template_kwargs = of_template
    return config


def _value(words: list[str]) -> Any:
    """What a flag says, as YAML would read it; a flag alone says true."""
    import yaml

    values = [yaml.safe_load(word) for word in words]
    return True if not values else values[0] if len(values) == 1 else values


def _pairs(words: list[str]) -> dict[str, str]:
    """NAME VALUE NAME VALUE … or NAME=VALUE …"""
    flat = [part for word in words for part in (word.split("=", 1) if re.match(r"\w+=", word) else [word])]
    if len(flat) % 2:
        raise ValueError(f"--dataset-args takes pairs of a name and a value; {flat[-1]!r} has no value")
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _train(argv: list[str]) -> int:
    trainer = _run(parse_train(argv))
    directory, lost = trainer.directory, trainer.recorder.failures
    told = f"recorded in {directory}" + (f", except {lost} files that could not be written" if lost else "")
    _console().print(f"{told}; look at it with: segpo report {directory}", highlight=False)
    if trainer.stopped_by in (0, signal.SIGINT):
        return 0
    name = signal.Signals(trainer.stopped_by).name
    _console().print(f"{name}: ended after step {trainer.step}, which is saved; --resume goes on", highlight=False)
    return 128 + trainer.stopped_by  # what a shell reports of a process that ended so


def _console() -> Console:
    """Where a run is talked about: of several processes, only the first one speaks."""
    return Console(stderr=True, quiet=os.environ.get("RANK", "0") != "0")


def _run(config: TrainConfig) -> Trainer:
    from transformers.utils import logging as transformers_logging

    from segpo_core.training.loop import Trainer
    from segpo_core.training.progress import Display

    transformers_logging.disable_progress_bar()  # bars of its own for every file would break up ours

    trainer = Trainer(config)
    with Display(config.max_steps, config.algo.title, _console()) as display:
        trainer.on_step = display.update
        trainer.run()
    return trainer


def _demo(argv: list[str]) -> int:
    """Train as configs/demo.yaml says, beside GRPO on the same problems, with the app open, and write the reports.

    `--no-app` shows nothing, `--alone` leaves GRPO out. `--text` trains a small language model on sums instead, as
    configs/text.yaml says.
    """
    show = "--no-app" not in argv and sys.stdout.isatty()
    if show and find_spec("gradio") is None:
        raise ImportError("the app is not installed: pip install 'segpo[views]', or without it: segpo demo --no-app")
    from segpo_core.config import load_yaml
    from segpo_core.training.beside import Companion

    own = [flag for flag in argv if flag not in ("--no-app", "--alone", "--text")]
    text = "--text" in argv
    defaults = load_yaml(ROOT / "configs" / ("text.yaml" if text else "demo.yaml"))
    defaults["output_dir"] = str(_fresh("runs/text" if text else "runs/demo"))
    config = parse_train(own, "segpo demo", defaults)
    directory, console = Path(config.output_dir), Console(stderr=True)
    alone = "--alone" in argv or config.method == "grpo"
    beside = "" if alone else ", beside GRPO on the same problems"
    console.print(f"Training with {config.algo.title}{beside}; Ctrl-C ends after the step at hand. Run: {directory}")
    app = _beside(directory.parent) if show else None
    other, companion = directory.with_name(f"{directory.name}-grpo"), None
    try:
        if not alone:
            threads = max(1, (os.cpu_count() or 1) // 2)
            companion = Companion(config, "grpo", other, defaults.get("methods") or {}, threads)
            _limit_threads(threads)
        _run(config)
        if companion is not None:
            if _last_step(directory) < config.max_steps:
                companion.end()
            console.print("GRPO trains on." if companion.process.poll() is None else "GRPO is done.")
            if said := companion.wait():
                return _fail(f"the run beside failed:\n{said}")
            _tell_both(directory, other, config.algo.title, console)
        if not text:
            _judged_again(directory, console)
        code = _report([str(directory)] if alone else [str(directory), str(other)])
        if app is not None and app.poll() is None:
            console.print("The app stays open beside the finished run; Ctrl-C ends it.")
            app.wait()
    except KeyboardInterrupt:
        code = 0
    finally:
        if companion is not None:
            companion.stop()
        if app is not None:
            app.terminate()
            app.wait()
    return code


def _limit_threads(number: int) -> None:
    """Two processes share the machine: neither takes all of it."""
    import torch

    torch.set_num_threads(min(number, torch.get_num_threads()))


def _last_step(directory: Path) -> int:
    from segpo_core.training import checkpoint

    return checkpoint.read_step(checkpoint.latest(directory / "checkpoints"))


def _tell_both(directory: Path, other: Path, title: str, console: Console) -> None:
    """A table of what came of both runs."""
    from rich.table import Table

    from segpo_core.training.beside import outcome

    ours, theirs = outcome(directory), outcome(other)
    table = Table("held-out problems, greedy", "before", "GRPO", title, title="The same problems, as many completions")
    for label, (before, after) in ours.items():
        table.add_row(label, before, theirs[label][1], after)
    console.print(table)


def _judged_again(directory: Path, console: Console) -> None:
    """What other methods would have said about the completions that the report begins with."""
    from segpo_core.afterwards.credit import recompute
    from segpo_core.record.blame import BLAMED, tour
    from segpo_core.record.store import read_manifest, read_rollouts

    steps = sorted({key[0] for key in tour(read_rollouts(directory, columns=list(BLAMED)).to_pylist()).values()})
    own = read_manifest(directory)["config"]["method"]
    others = [name for name in ("grpo", "vineppo", "spo_chain", "srpo", "forks") if name != own]
    if steps:
        told = ", ".join(map(str, steps))
        console.print(f"Credit of {', '.join(others)} for the same completions, step {told}.", highlight=False)
        recompute(directory, others, steps, trust_code=True)  # this run was begun here, a minute ago


def _beside(runs: Path) -> subprocess.Popen:
    """The app in a process of its own, so that neither waits for the other; Ctrl-C is for the training."""
    command = [sys.executable, "-m", "segpo_core.cli", "app", str(runs), "--open"]
    return subprocess.Popen(command, start_new_session=True)


def _fresh(name: str) -> Path:
    """`name`, or, when that holds a run already, `name` with the time."""
    path = Path(name)
    return path if not path.exists() else Path(f"{name}-{datetime.now():%Y%m%d-%H%M%S}")


def _credit(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="segpo credit",
        description="Compute other methods' credit for a run's recorded rollouts; it is stored in RUN/credit.",
    )
    parser.add_argument("run", help="run directory")
    parser.add_argument(
        "--method", required=True, help="names, with commas between them: grpo,rloo,sapo; your own as file.py:Class"
    )
    parser.add_argument("--steps", help="steps, with commas between them; default: all that were recorded")
    parser.add_argument("--trust-code", **_TRUST_CODE)
    args = parser.parse_args(argv)
    steps = None if args.steps is None else args.steps.split(",")
    if steps is not None and not all(step.strip().isdigit() for step in steps):
        raise ValueError(f"--steps must be numbers with commas between them, not {args.steps!r}")

    from segpo_core.afterwards.credit import recompute

    methods = list(dict.fromkeys(name.strip() for name in args.method.split(",")))
    files = recompute(args.run, methods, steps and [int(step) for step in steps], trust_code=args.trust_code)
    _console().print(f"wrote {len(files)} files in {Path(args.run) / 'credit'}", highlight=False)
    return 0


def _app(argv: list[str]) -> int:
    return _elsewhere("app", argv)


def _report(argv: list[str]) -> int:
    return _elsewhere("report", argv)


def _elsewhere(name: str, argv: list[str]) -> int:
    """Run a command that another package brings (entry point group `segpo.commands`): the core imports no views."""
    for entry in entry_points(group="segpo.commands", name=name):
        return entry.load()(argv)
    raise ImportError(f"the command {name!r} comes with the views, which are not installed: pip install 'segpo[views]'")


def _evaluate(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="segpo evaluate", description="Measure a model on held-out problems (JSON).")
    parser.add_argument("model", nargs="?", default="data/tiny-vlm", help="a run, one of its checkpoints, or a model")
    parser.add_argument(
        "--dataset", help="a file, or file.py:Task; default: the run's own; of a model that is no run's, shapes"
    )
    parser.add_argument(
        "--dataset-args", nargs="*", default=[], metavar="NAME VALUE", help="settings of the data set, as in train"
    )
    parser.add_argument(
        "--reward-funcs", nargs="*", default=[], help="built-in names or file.py:function, in place of the data set's"
    )
    parser.add_argument("--size", type=int, default=400, help="held-out problems")
    parser.add_argument("--samples", type=int, default=8, help="sampled completions a problem; 0: greedy only")
    parser.add_argument("--max-completion-length", type=int, help="default: the run's own; of a model, 96")
    parser.add_argument("--trust-code", **_TRUST_CODE)
    args = parser.parse_args(argv)

    from segpo_core.afterwards.trained import Policy, run_config, run_of, run_rewards, run_task
    from segpo_core.tasks import load_task
    from segpo_core.tasks.rewards import load_reward
    from segpo_core.training.evaluate import evaluate

    run, settings = run_of(args.model), _pairs(args.dataset_args)
    own = [load_reward(spec) for spec in args.reward_funcs]
    if run is None or args.dataset is not None:
        task = load_task(args.dataset or "shapes", **settings)
        functions, weights = own or task.reward_funcs, None
    else:
        config = run_config(run)
        config.dataset_args |= settings
        functions, weights = own or run_rewards(config, run, args.trust_code), None if own else config.reward_weights
        task = run_task(config, run, args.trust_code)
    policy = Policy.load(args.model, reward_funcs=functions)
    if args.max_completion_length or run is None:
        policy.sampler.max_completion_length = args.max_completion_length or 96
    _console().print(f"evaluating {policy.name}", highlight=False)
    numbers = evaluate(policy.sampler, task, policy.processor, functions, weights, args.size, args.samples)
    print(json.dumps({name: round(value, 4) for name, value in numbers.items()}, indent=2))
    return 0


def _bench_learn(argv: list[str]) -> int:
    from segpo_core.afterwards.bench_learn.run import main as bench

    return bench(argv, ROOT)


def _bench_credit(argv: list[str]) -> int:
    from segpo_core.afterwards.bench_credit.run import main as bench

    return bench(argv, ROOT)


def _warmup(argv: list[str]) -> int:
    import tyro

    from segpo_core.training.warmup import WarmupConfig, warmup

    warmup(tyro.cli(WarmupConfig, args=argv, prog="segpo warmup"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
