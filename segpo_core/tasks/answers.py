"""What a person would call the answer of a text, and when two answers are the same in form.

Form is spelling: blanks, case, a closing full stop, LaTeX wrappers, U+2212 for a minus, words for numbers, a unit that
only one of the two writes, a letter with its option text. Mathematics is math-verify's (see rewards.py). A part of an
answer is not the answer: of 1/9 neither 1 nor 9 is.
"""

from __future__ import annotations

import re
from fractions import Fraction

_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_NUMBER = re.compile(r"([+-]?)(\d+|\d{1,3}(?:,\d{3})+)?(?:\.(\d*))?")
_CLOSING = re.compile(r"\banswer\b[*_\s]*(?:is\b|are\b|:|=)[*_\s]*:?[ \t]*\n?", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?](?=[\s\"')*_]|$)|\n|,?\s(?:because|since|as)\s")

# An expression in running text, taken whole (atomic groups): a shorter one would be a part of it.
_BRACES = r"\{(?:[^{}]|\{[^{}]*\})*\}"
_PLAIN = r"(?:\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
_ATOM = rf"(?:\\[dt]?frac\s*(?:{_BRACES}{_BRACES}|\d\d)|\\sqrt(?:\[\d+\])?{_BRACES}|√\d+|\\pi|π|{_PLAIN})"
_POWER = rf"(?:\^(?:{_BRACES}|-?\d+))?(?:\\?%)?"
_JOIN = r"(?:\s*(?:[-+*/×·]|\\times|\\cdot|\\div|x(?=\s*\d)|by(?=\s*\d))\s*-?|(?=[\\√π])|\s+(?=\d+/\d))"
_TERM = rf"-?{_ATOM}{_POWER}(?:{_JOIN}{_ATOM}{_POWER})*"
_EXPRESSION = re.compile(
    rf"(?<![\w^/\\{{])(?<!\d\.)(?<![a-zA-Z][-+*/])(?<![a-zA-Z] [-+*/] )"
    rf"(?>\(\s*{_TERM}(?:\s*,\s*{_TERM})+\s*\)|{_TERM})(?!\s*[/^]\s*\w|[a-zA-Z](?![a-zA-Z])|\d)"
)
_MATH_SPAN = re.compile(r"\$\$(.+?)\$\$|\$(.+?)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)

_WRAPPER = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}")
_SIGNS = {"−": "-", "×": "\\times ", "·": "\\cdot ", "÷": "\\div ", "π": "\\pi ", "²": "^2", "³": "^3", "°": " degrees",
          "^\\circ": " degrees", "^{\\circ}": " degrees", "{,}": ",", "\\left": "", "\\right": "", "\\dfrac": "\\frac",
          "\\tfrac": "\\frac", "\\%": "%", "\\$": "", "$": "", "€": "", "£": "", "\\!": "", "\\,": " ", "\\;": " ",
          "\\ ": " ", "\\(": "", "\\)": "", "\\[": "", "\\]": "", "\u00a0": " "}  # fmt: skip
_SIZES = re.compile(r"\d+(?:\.\d+)?(?:\s*(?:x|X|\*|\\times|by)\s*\d+(?:\.\d+)?)+")
_MIXED = re.compile(r"(-?)(\d+)(?:\s+(\d+)/(\d+)|\s*\\frac\s*\{(\d+)\}\s*\{(\d+)\})")
_LETTER = re.compile(r"(?:(?:option|choice)\s+)?(?:\(([A-Z])\)|([A-Z])(?=$|[).:]))(?:[).:]?\s*(.*))", re.IGNORECASE)
_UNIT = r"[a-zA-Z]+(?:\^\{?-?\d\}?)?"
_WITH_UNIT = re.compile(
    rf"(.*[\d}}])(?:\s*((?:[a-zA-Z]{{2,}}(?:\^\{{?-?\d\}}?)?)(?:[ /]{_UNIT}){{0,2}})|\s+({_UNIT}(?:[ /]{_UNIT})?))"
)
#: Words after a number that change it.
_NO_UNIT = set(
    """and or to by x times over plus minus squared cubed pi percent half halves hundred thousand million
               billion trillion dozen not less more but than of""".split()
)
_ONES = ("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
         "seventeen eighteen nineteen").split()  # fmt: skip
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_VALUES = {word: i for i, word in enumerate(_ONES)} | {word: 10 * i for i, word in enumerate(_TENS, 2)}
_NUMBER_WORDS = _VALUES | {
    f"{ten}{between}{one}": _VALUES[ten] + _VALUES[one] for ten in _TENS for one in _ONES[1:10] for between in "- "
} | {"hundred": 100, "one hundred": 100, "thousand": 1000, "one thousand": 1000}  # fmt: skip


def normalise_answer(text: object) -> str:
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


def is_number(text: str) -> bool:
    """Whether a normalised text is a plain decimal number."""
    return bool(_NUMBER.fullmatch(text)) and any(c.isdigit() for c in text)


# --- finding the answer ---


def answer_block(text: str) -> str | None:
    """What the last `<answer>` block holds, None without one."""
    blocks = _ANSWER.findall(text)
    return blocks[-1] if blocks else None


def stated_answer(text: str) -> str | None:
    """The answer that a text states: the last `<answer>` block, else the last `\\boxed{...}` (also within the block),
    else what follows the last "the answer is" or "Answer:". None where there is none of them."""
    block = answer_block(text)
    inside = text if block is None else block
    boxed = _boxed(inside)
    if boxed is not None:
        return boxed
    if block is not None:
        return block
    closings = list(_CLOSING.finditer(text))
    if not closings:
        return None
    rest = text[closings[-1].end() :]
    end = _SENTENCE_END.search(rest)
    letter = _LETTER.match(rest)
    if letter and end and end.group() == "." and end.start() < letter.end():  # "B. a cube": the stop ends no sentence
        return rest.split("\n")[0]
    return rest[: end.start()] if end else rest


def last_expression(text: str) -> str | None:
    """The last number or mathematical expression of a text, whole; None without one."""
    expressions = list(_EXPRESSION.finditer(text.replace("−", "-")))
    found = expressions[-1] if expressions else None
    spans = list(_MATH_SPAN.finditer(text))
    if spans and (found is None or found.end() <= spans[-1].end()):
        inside = next(group for group in spans[-1].groups() if group is not None)
        return re.split(r"(?<![<>!\\])=", inside)[-1]
    return found.group() if found else None


def _boxed(text: str) -> str | None:
    start = max(text.rfind("\\boxed{"), text.rfind("\\fbox{"))
    if start < 0:
        return None
    begin, depth = text.index("{", start) + 1, 1
    for i in range(begin, len(text)):
        depth += (text[i] == "{") - (text[i] == "}")
        if depth == 0:
            return text[begin:i]
    return None


# --- comparing answers ---


def tidy(text: object) -> str:
    """An answer without what is only its dress: LaTeX wrappers and spaces, `$`, emphasis, quotes, a closing stop."""
    text = re.sub(r"√(\d+)", r"\\sqrt{\1}", str(text))
    for sign, plain in _SIGNS.items():
        text = text.replace(sign, plain)
    text = " ".join(_WRAPPER.sub(r" \1", text).split())
    text = text.strip("*_`\"'“”‘’ ").rstrip(".!?;, ").strip("*_`\"'“”‘’ ")
    return normalise_answer(text)


def same_form(given: str, answer: str) -> bool | None:
    """Whether two answers are the same, as far as form tells: True, False, or None where only mathematics could say.

    Both as `tidy` gives them.
    """
    if not given or not answer:
        return False
    if _key(given) == _key(answer):
        return True
    if _SIZES.fullmatch(answer):  # "10x9" is ten by nine, neither the product nor nine by ten
        return bool(_SIZES.fullmatch(given)) and _sizes(given) == _sizes(answer)
    if "=" in given and "=" not in answer:
        return same_form(tidy(re.split(r"(?<![<>!\\])=", given)[-1]), answer) if _assigns(given) else None
    wanted, offered = _LETTER.fullmatch(answer), _LETTER.fullmatch(given)
    if wanted and offered:
        texts = [(m[3] or "").casefold() for m in (wanted, offered)]
        same = (wanted[1] or wanted[2]).casefold() == (offered[1] or offered[2]).casefold()
        return same and (texts[0] == texts[1] or "" in texts)
    (value, unit), (other, its_unit) = _unit(given), _unit(answer)
    if bool(unit) != bool(its_unit):
        return same_form(value, other)
    if unit and its_unit:
        return unit == its_unit and same_form(value, other)
    fraction, other_fraction = _mixed(given), _mixed(answer)
    if fraction != given or other_fraction != answer:
        return same_form(fraction, other_fraction)
    return False if is_number(given) and is_number(answer) else None


def without_dress(given: str, answer: str) -> tuple[str, str]:
    """The two as a mathematician would write them: without the unit and "x =" that only one has, mixed numbers as
    fractions. For what `same_form` cannot say."""
    if "=" in given and "=" not in answer and _assigns(given):
        given = tidy(re.split(r"(?<![<>!\\])=", given)[-1])
    return _mixed(_unit(given)[0]), _mixed(_unit(answer)[0])


def _assigns(text: str) -> bool:
    return bool(re.search(r"(?<![<>!\\])=", text))


def _key(text: str) -> str:
    text = text.casefold()
    return str(_NUMBER_WORDS[text]) if text in _NUMBER_WORDS else text


def _sizes(text: str) -> list[str]:
    return [normalise_answer(part) for part in re.split(r"x|X|\*|\\times|by", text)]


def _unit(text: str) -> tuple[str, str]:
    found = _WITH_UNIT.fullmatch(text)
    unit = (found[2] or found[3] or "").casefold().replace("{", "").replace("}", "") if found else ""
    words = re.split(r"[ /^]", unit)
    if not unit or any(word in _NO_UNIT or word in _VALUES for word in words) or _SIZES.fullmatch(text):
        return text, ""
    return normalise_answer(found[1]), unit


def _mixed(text: str) -> str:
    found = _MIXED.fullmatch(text)
    if found is None or not int(found[4] or found[6]):
        return text
    value = int(found[2]) + Fraction(int(found[3] or found[5]), int(found[4] or found[6]))
    return f"{found[1]}{value}"
