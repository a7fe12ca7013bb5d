"""Reads label map files: action names by id."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

_BLOCK = re.compile(r"\b(?:item|label)\s*:?\s*\{")
_FIELD = re.compile(
    r"""(?P<key>\w+)\s*:\s*(?:"(?P<double>(?:[^"\\]|\\.)*)"|'(?P<single>(?:[^'\\]|\\.)*)'|(?P<bare>[^\s},;]+))"""
)
_COMMENT = re.compile(r"[ \t]*#[^\n]*")
_NUMBERED = re.compile(r"(?P<id>\d+)\s*[\s:,;]\s*(?P<name>\S.*)")


def read_label_map(path: str | Path) -> dict[int, str]:
    """Read a label map in one of three layouts, which are recognized by their content.

    - protobuf text, blocks `item { name: "run" id: 3 }` or `label { name: "run" label_id: 3 label_type: ... }`;
    - plain text, an id and a name per line: `3 run`, `3: run` or `3,run`;
    - plain text, one name per line; ids start at 1, as in AVA.

    Returns:
        {id: name} in ascending order, at least one entry.

    Raises:
        ValueError: The file is empty, an entry has no id or name, or an id or name is given twice.
    """
    path = Path(path)
    text = path.read_text(encoding="utf-8-sig")
    read = _protobuf_entries if _BLOCK.search(text) else _plain_entries
    names: dict[int, str] = {}
    lines: dict[str, int] = {}
    for line, label_id, name in read(path, text):
        if label_id in names:
            raise ValueError(f"{path}, line {line}: id {label_id} is already {names[label_id]!r}; use a different id")
        if name in lines:
            raise ValueError(f"{path}, line {line}: {name!r} is already in line {lines[name]}; use a different name")
        names[label_id], lines[name] = name, line
    if not names:
        raise ValueError(f"{path}: no class found; expected blocks `item {{ name: ... id: ... }}` or a class per line")
    return dict(sorted(names.items()))


def _protobuf_entries(path: Path, text: str) -> Iterator[tuple[int, int, str]]:
    """Line, id and name of every block."""
    position = 0
    while rest := text[position:].strip():
        position = text.index(rest, position)
        line = text.count("\n", 0, position) + 1
        if comment := _COMMENT.match(text, position):
            position = comment.end()
            continue
        block = _BLOCK.match(text, position)
        if block is None:
            raise ValueError(f"{path}, line {line}: {rest.splitlines()[0]!r} does not start an item or label block")
        fields, position = _block_fields(path, text, block.end())
        label_id = fields.get("id", fields.get("label_id"))
        if label_id is None or not label_id.isdecimal():
            raise ValueError(f"{path}, line {line}: the block has id {label_id!r}; expected `id: <number>`")
        if not fields.get("name"):
            raise ValueError(f"{path}, line {line}: the block with id {label_id} has no name")
        yield line, int(label_id), fields["name"]


def _block_fields(path: Path, text: str, position: int) -> tuple[dict[str, str], int]:
    """Fields of the block whose content starts at `position`, and the position after its closing brace."""
    fields: dict[str, str] = {}
    separator = re.compile(r"(?:[\s,;]|#[^\n]*)*")
    while True:
        position = separator.match(text, position).end()  # type: ignore[union-attr]  # matches the empty string
        if text.startswith("}", position):
            return fields, position + 1
        field = _FIELD.match(text, position)
        if field is None:
            line = text.count("\n", 0, position) + 1
            raise ValueError(f"{path}, line {line}: expected `key: value` or the closing brace of the block")
        value = next(v for v in field.group("double", "single", "bare") if v is not None)
        fields[field["key"]] = re.sub(r"\\(.)", r"\1", value)
        position = field.end()


def _plain_entries(path: Path, text: str) -> Iterator[tuple[int, int, str]]:
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    numbered = [_NUMBERED.fullmatch(line) for _, line in lines]
    if not any(numbered):
        yield from ((number, label_id, name) for label_id, (number, name) in enumerate(lines, 1))
        return
    for (number, line), match in zip(lines, numbered, strict=True):
        if match is None:
            raise ValueError(f"{path}, line {number}: {line!r} has no id but other lines do; give all lines an id")
        yield number, int(match["id"]), match["name"]
