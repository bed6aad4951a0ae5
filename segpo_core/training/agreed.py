"""What a resumed run must agree on with the run it goes on from, and what may change on the way."""

from __future__ import annotations

from typing import Any

#: How long, how often written, where to, with how much memory at a time: what a run may change as it goes on. The size
#: of a pass is among them, since another number of processes shares the same batch in other parts.
FREE = {
    "output_dir", "resume", "max_steps", "num_train_epochs", "eval_steps", "eval_size", "num_generations_eval",
    "save_steps",
    "save_minutes", "save_total_limit", "record_steps", "score_after_update", "report_to", "cpu", "rows_per_batch",
    "value_mc_states", "per_device_train_batch_size", "log_eval_completions", "vllm_server_url", "vllm_server_timeout",
    "vllm_python", "vllm_server_args", "run_name", "push_to_hub", "hub_model_id", "hub_private_repo",
}  # fmt: skip


def differences(recorded: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Settings in which a run differs from what its `run.json` says, in words; those of `FREE` are left out, and so is
    what only one of the two knows (they may be of different versions).

    Args:
        recorded: `config` of run.json.
        now: `TrainConfig.to_dict`.
    """
    both = [name for name in now if name in recorded and name not in FREE]
    return [f"{name} was {recorded[name]!r}, is {now[name]!r}" for name in both if recorded[name] != _plain(now[name])]


def check(directory: Any, recorded: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to go on with a run as another one.

    Raises:
        ValueError: settings differ; they are named.
    """
    if found := differences(recorded, now):
        raise ValueError(
            f"{directory} was begun with other settings, so going on would make a run that is neither: "
            f"{'; '.join(found)}. Resume it with its own settings (they stand in run.json), or start a new run "
            "(another --output-dir) from its checkpoint with --model-name-or-path"
        )


def _plain(value: Any) -> Any:
    """As it comes back from JSON: tuples are lists, what JSON does not know is text."""
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)
