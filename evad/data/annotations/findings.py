"""Findings about a data set: what is wrong or worth knowing, how often, where, and how to mend it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Severity = Literal["error", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")

MAX_EXAMPLES = 5


@dataclass(frozen=True)
class Finding:
    """One observation about a data set.

    Attributes:
        kind: Stable short name, such as `boxes-swapped`.
        severity: `error`: training would be wrong or stop; `warning`: probably a mistake; `info`: good to know.
        message: What was found, as a clause that can follow an example.
        remedy: What to do about it; may be empty.
        count: Number of affected lines, videos or classes.
        examples: The first few affected lines, videos or classes, with file and line if known.
    """

    kind: str
    severity: Severity
    message: str
    remedy: str = ""
    count: int = 1
    examples: tuple[str, ...] = ()

    def __str__(self) -> str:
        where = f"{self.examples[0]}: " if self.examples else ""
        remedy = f"; {self.remedy}" if self.remedy else ""
        others = f" ({self.count - 1} more like it)" if self.examples and self.count > 1 else ""
        return f"{where}{self.message}{remedy}{others}"

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "examples": list(self.examples)}


def by_severity(findings: Iterable[Finding]) -> list[Finding]:
    """Errors first, then warnings, then infos; each in the given order."""
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def listed(names: Iterable[object]) -> str:
    texts = list(map(str, names))
    return ", ".join(texts[:MAX_EXAMPLES]) + (", ..." if len(texts) > MAX_EXAMPLES else "")


def errors(findings: Iterable[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.severity == "error"]


def require_sound(findings: Sequence[Finding]) -> None:
    """Raise if the findings include errors.

    Raises:
        ValueError: Training would be wrong; the text lists all errors.
    """
    found = errors(findings)
    if len(found) == 1:
        raise ValueError(str(found[0]))
    if found:
        listed = "\n".join(f"  {number}. {finding}" for number, finding in enumerate(found, 1))
        raise ValueError(f"the annotations have {len(found)} kinds of errors:\n{listed}")
