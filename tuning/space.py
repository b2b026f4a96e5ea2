"""The search space: which flags of `train.py` vary, and over what, as typed or as a YAML file.

Unusual: choices stay text, as they are typed for `train.py`, whose own parser says later whether they are right.
"""

import math
import re
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

EXPRESSION = re.compile(r"\s*(\w+)\s*\((.*)\)\s*", flags=re.DOTALL)
# Kind -> (how it is written, type of its numbers, whether its scale is logarithmic); choices are no numbers.
KINDS = {
    "uniform": ("uniform(low,high) or uniform(low,high,step)", float, False),
    "loguniform": ("loguniform(low,high)", float, True),
    "int": ("int(low,high) or int(low,high,step)", int, False),
    "logint": ("logint(low,high)", int, True),
    "categorical": ("categorical(a,b,…)", str, False),
}
EXAMPLE = "learning_rate=loguniform(1e-4,3e-3)"


@dataclass(frozen=True)
class Dimension:
    """One flag and what it varies over.

    Attributes:
        name: Of the flag, without dashes.
        kind: One of `KINDS`.
        values: (low, high) or (low, high, step), or the choices as text.
    """

    name: str
    kind: str
    values: tuple

    def __str__(self) -> str:
        return f"{self.kind}({', '.join(map(str, self.values))})"

    @property
    def is_log(self) -> bool:
        return KINDS[self.kind][2]

    def distribution(self) -> "BaseDistribution":
        """What Optuna samples from."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.kind == "categorical":
            return CategoricalDistribution(self.values)
        low, high, *step = self.values
        if KINDS[self.kind][1] is int:
            return IntDistribution(low, high, log=self.is_log, step=step[0] if step else 1)
        return FloatDistribution(low, high, log=self.is_log, step=step[0] if step else None)

    def extremes(self) -> tuple:
        """Values that are worth trying on the parser: both ends, or every choice."""
        return self.values if self.kind == "categorical" else self.values[:2]

    def grid(self) -> list:
        """Every value, for a search by grid.

        Raises:
            ValueError: There is no end of them.
        """
        if self.kind == "categorical":
            return list(self.values)
        low, high, *step = self.values
        if self.is_log or (self.kind == "uniform" and not step):
            raise ValueError(
                f"--sampler grid: `{self.name}` is {self}, which has no grid: give a step, as in "
                f"uniform(low,high,step), or the values, as in categorical(1e-4,1e-3)"
            )
        first, width = Decimal(str(low)), Decimal(str(step[0] if step else 1))
        count = int((Decimal(str(high)) - first) / width) + 1
        return [type(low)(first + width * i) for i in range(count)]


Space = dict[str, Dimension]


def read_space(assignments: list[str], file: Path | None = None) -> Space:
    """Read the space from flags and a file; a name stands in one of them.

    Args:
        assignments: Each as `learning_rate=loguniform(1e-4,3e-3)`.
        file: YAML: names, each with such an expression or with a list of choices.

    Raises:
        ValueError: One cannot be read, is empty, or stands there twice; or there is none.
        FileNotFoundError: There is no such file.
    """
    pairs = [_split(text) for text in assignments]
    pairs += [] if file is None else _pairs_of(file)
    space: Space = {}
    for name, value in pairs:
        if name in space:
            raise ValueError(f"the space has `{name}` twice: {space[name]} and {value}; leave one out")
        space[name] = _choices(name, value) if isinstance(value, list) else _dimension(name, value)
    if not space:
        raise ValueError(f'there is nothing to search: give --space "{EXAMPLE}" or --space_file')
    return space


def _split(text: str) -> tuple[str, str]:
    name, equals, expression = text.partition("=")
    if not equals or not name.strip():
        raise ValueError(f"--space {text}: write NAME=KIND(…), such as {EXAMPLE}")
    return _bare(name), expression


def _bare(name: str) -> str:
    """A flag's name, also where it is written with its dashes."""
    return name.strip().removeprefix("--")


def _pairs_of(file: Path) -> list[tuple[str, str | list]]:
    import yaml

    if not file.is_file():
        raise FileNotFoundError(f"--space_file {file}: there is no such file")
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)  # whose every scalar is text
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"--space_file {file}: no YAML that can be read: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ValueError(f"--space_file {file}: lines such as `learning_rate: loguniform(1e-4, 3e-3)` are expected")
    for name, value in content.items():
        if not isinstance(value, str | list):
            raise ValueError(
                f"--space_file {file}: `{name}` is `{value}`; write an expression such as loguniform(1e-4, 3e-3), or "
                "a list of choices. What does not vary goes to train.py, after --"
            )
    return [(_bare(str(name)), value) for name, value in content.items()]


def _dimension(name: str, expression: str) -> Dimension:
    match = EXPRESSION.fullmatch(expression)
    if match is None or match[1] not in KINDS:
        ways = "; ".join(way for way, *_ in KINDS.values())
        raise ValueError(f"the space of `{name}` is `{expression.strip()}`; it can be: {ways}")
    kind, words = match[1], [word.strip() for word in match[2].split(",")]
    return _choices(name, words) if kind == "categorical" else _range(name, kind, words)


def _range(name: str, kind: str, words: list[str]) -> Dimension:
    way, number, is_log = KINDS[kind]
    what = f"the space of `{name}` is {kind}({','.join(words)})"
    try:
        values = tuple(number(word) for word in words)
    except ValueError:
        raise ValueError(f"{what}: write {way}, with {'whole ' if number is int else ''}numbers") from None
    if len(values) not in ((2,) if is_log else (2, 3)) or not all(map(math.isfinite, values)):
        raise ValueError(f"{what}: write {way}")
    low, high, *step = values
    if not low < high:
        raise ValueError(f"{what}: the first number is to be below the second")
    if is_log and low <= 0:
        raise ValueError(f"{what}: a logarithmic scale begins above 0")
    if step and (step[0] <= 0 or (Decimal(str(high)) - Decimal(str(low))) % Decimal(str(step[0]))):
        raise ValueError(f"{what}: steps of {step[0]} do not lead from {low} to {high}")
    return Dimension(name, kind, values)


def _choices(name: str, values: list) -> Dimension:
    texts = tuple(map(str, values))
    if len(texts) < 2 or len(set(texts)) < len(texts) or "" in texts:
        raise ValueError(
            f"the space of `{name}` is categorical({', '.join(texts)}): give two or more choices, none of them twice "
            "or empty. What does not vary goes to train.py, after --"
        )
    return Dimension(name, "categorical", texts)
