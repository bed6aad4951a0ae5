"""Verifiable rewards, with TRL's call signature: `f(prompts, completions, **columns) -> list[float | None]`."""

from __future__ import annotations

import re

_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_NUMBER = re.compile(r"([+-]?)(\d+|\d{1,3}(?:,\d{3})+)?(?:\.(\d*))?")


def normalise_answer(text: str) -> str:
    """Blanks made single; a plain decimal number in one spelling: "+1,200.50" -> "1200.5", "-0" -> "0"."""
    text = " ".join(str(text).split())
    number = _NUMBER.fullmatch(text)
    if number is None or not any(c.isdigit() for c in text):
        return text
    sign, whole, fraction = number.groups()
    whole = (whole or "").replace(",", "").lstrip("0") or "0"
    fraction = (fraction or "").rstrip("0")
    value = f"{whole}.{fraction}" if fraction else whole
    return f"-{value}" if sign == "-" and value != "0" else value


def completion_text(completion: str | list) -> str:
    """The text of a completion in TRL's form: a string, or messages whose last one is the answer."""
    if isinstance(completion, str):
        return completion
    content = completion[-1]["content"] if completion else ""
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content)


def answer_block(text: str) -> str | None:
    """What the last `<answer>` block holds, None without one."""
    blocks = _ANSWER.findall(text)
    return blocks[-1] if blocks else None


def answer_reward(prompts, completions, answer, **columns) -> list[float | None]:
    """1.0 where the `<answer>` block equals the `answer` column (blanks and number spelling aside), else 0.0."""
    out: list[float | None] = []
    for completion, reference in zip(completions, answer, strict=True):
        given = answer_block(completion_text(completion))
        out.append(float(given is not None and normalise_answer(given) == normalise_answer(reference)))
    return out
