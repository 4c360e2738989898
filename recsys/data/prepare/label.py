"""Labels: a 0/1 column, or a rule on one column, as SQL over text columns.

In: `interactions.label` of a recipe. Out: SQL.
"""

import re
from dataclasses import dataclass

from recsys.data.sql import literal, quoted

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_COMPARED = re.compile(rf"\s*(.+?)\s*(>=|<=|==|!=|>|<)\s*({_NUMBER})\s*")
_EQUAL = re.compile(r"\s*(.+?)\s*(==|!=)\s*(\S.*?)\s*")
_LISTED = re.compile(r"\s*(.+?)\s+(in|not\s+in)\s*[\[(](.*)[\])]\s*")
_ELEMENT = re.compile(r"""\s*('[^']*'|"[^"]*"|[^,]*?)\s*(?:,|$)""")
RULES = '"rating >= 4", "event == purchase" or "event in [cart, purchase]"'
"""Example rules, for messages."""


@dataclass(frozen=True, kw_only=True)
class LabelRule:
    """A label as a condition on one column."""

    column: str
    operator: str | None
    """SQL operator; None: the column itself is 0 or 1."""
    values: tuple[float, ...] | tuple[str, ...] = ()
    """Operands, numbers or texts; several with IN and NOT IN."""


def parse_label(text: str) -> LabelRule:
    """Parse a rule: "rating >= 4", "event == purchase", or a column name.

    Values between quotes are text, others are numbers where they all look like it.
    """
    if match := _COMPARED.fullmatch(text):
        operator = "=" if match[2] == "==" else match[2]
        return LabelRule(column=match[1], operator=operator, values=(float(match[3]),))
    if match := _EQUAL.fullmatch(text):
        operator = "=" if match[2] == "==" else match[2]
        return LabelRule(column=match[1], operator=operator, values=_values([match[3]]))
    if match := _LISTED.fullmatch(text):
        elements = [element for element in _ELEMENT.findall(match[3]) if element]
        if elements:
            operator = "IN" if match[2] == "in" else "NOT IN"
            return LabelRule(column=match[1], operator=operator, values=_values(elements))
    return LabelRule(column=text.strip(), operator=None)


def _values(elements: list[str]) -> tuple[float, ...] | tuple[str, ...]:
    if all(re.fullmatch(_NUMBER, element) for element in elements):
        return tuple(float(element) for element in elements)
    return tuple(
        element[1:-1] if element[0] in "'\"" and element[-1] == element[0] else element
        for element in elements
    )


def label_sql(rule: LabelRule) -> str:
    """SQL: whether a row is a positive."""
    if rule.operator is None:
        return f"{_zero_or_one_sql(rule.column)} = 1"
    given, values = _compared_sql(rule)
    listed = f"({', '.join(values)})" if rule.operator.endswith("IN") else values[0]
    return f"{given} {rule.operator} {listed}"


def unusable_label(rule: LabelRule) -> tuple[str, str]:
    """Return SQL that is true for a row without a label, and what is wrong with it."""
    if rule.operator is None:
        wrong = f"label other than 0/1 (for other values state a rule, such as {RULES})"
        return f"coalesce({_zero_or_one_sql(rule.column)}, -1) NOT IN (0, 1)", wrong
    given, _ = _compared_sql(rule)
    if isinstance(rule.values[0], str):
        return f"coalesce({given}, '') = ''", "no value"
    return f"coalesce({given}, 'nan'::DOUBLE) = 'nan'::DOUBLE", "not a number"


def _compared_sql(rule: LabelRule) -> tuple[str, list[str]]:
    """SQL of the column and of the values as they are compared: as numbers, or as texts."""
    column = quoted(rule.column)
    texts = [value for value in rule.values if isinstance(value, str)]
    if not texts:
        return f"try_cast({column} AS DOUBLE)", [str(value) for value in rule.values]
    if all(value.lower() in ("true", "false") for value in texts):
        # Written true, True or TRUE, as programs do.
        return f"lower(trim({column}))", [literal(value.lower()) for value in texts]
    return f"trim({column})", [literal(value) for value in texts]


def _zero_or_one_sql(column: str) -> str:
    """SQL of a 0/1 label; true and false count as 1 and 0."""
    text = quoted(column)
    return f"coalesce(try_cast({text} AS DOUBLE), CAST(try_cast({text} AS BOOLEAN) AS INTEGER))"
