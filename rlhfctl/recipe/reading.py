"""Read recipe files and `--set` values into layers: YAML 1.2 and `extends:`.

Reads the recipe file and the files that it extends. Leaves out what the keys mean (sections/) and merging (layers.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode

from rlhfctl.recipe.files import absolute, expand, near_file, shown
from rlhfctl.recipe.layers import Layer, Origin, Problems, name_lists
from rlhfctl.recipe.sections.base import Key
from rlhfctl.recipe.words import describe

_TAG = "tag:yaml.org,2002:"
_SET = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)=(.*)", re.DOTALL)


def read_chain(file: Path, problems: Problems) -> list[Layer]:
    """Read the recipe's layer, then the layers of the files that it extends."""
    files, layers = [file], [_read_file(file, 0, problems)]
    while "extends" in layers[-1].data:
        stated, key, origin = layers[-1].data.pop("extends"), ("extends",), layers[-1].origins[("extends",)]
        name = stated[0] if isinstance(stated, list) and len(stated) == 1 else stated
        if not isinstance(name, str) or not name:
            problems.add(origin, key, f"expected the path of one recipe file, got {describe(stated)}")
            problems.stop()
        expanded = expand(name, key, origin, problems)
        if expanded is None:
            problems.stop()
        file = absolute(expanded, origin.folder)
        if file in files:
            circle = " -> ".join(shown(path) for path in [*files[files.index(file) :], file])
            problems.add(origin, key, f"goes round in a circle: {circle}", "remove one of them")
            break
        if not file.is_file():
            problems.add(origin, key, f"there is no file {shown(file)}{near_file(file)}")
            problems.stop()
        files.append(file)
        layers.append(_read_file(file, len(layers), problems))
    return layers


def _read_file(file: Path, number: int, problems: Problems) -> Layer:
    def at(line: int) -> Origin:
        return Origin(f"{shown(file)}:{line}", file.parent, (number, line))

    origins: dict[Key, Origin] = {}
    line, fault, data, text = 1, "", None, ""
    try:
        text = file.read_text(encoding="utf-8")
        root = yaml_1_2().compose(text)
        data = _Builder(origins, at, problems).build(root, ()) if root is not None else None
    except UnicodeDecodeError as error:
        line, fault = error.object[: error.start].count(b"\n") + 1, "not UTF-8 text"
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line, fault = mark.line + 1 if mark else 1, f"not valid YAML: {_reason(error)}"
    if not isinstance(data, dict):
        unquoted = "${" in "".join(text.splitlines()[line - 1 : line])  # braces mean something in {a: ${B}}
        fix = "put quotes around what has ${...} in it" if unquoted else None
        if not fault and not text.strip():
            fault, fix = "the file is empty", "rlhfctl init writes a recipe; rlhfctl recipes copy quickstart, too"
        elif fault == "not UTF-8 text":
            fix = "save it as UTF-8"
        problems.add(at(line), (), fault or f"expected a mapping of keys (`name: ...`), got {describe(data)}", fix)
        problems.stop()
    return name_lists(Layer(data, origins | {(): at(1)}))


def _reason(error: YAMLError) -> str:
    problem = getattr(error, "problem", None) or " ".join(str(error).split())
    begun, at = getattr(error, "context_mark", None), getattr(error, "problem_mark", None)
    if begun is None or at is None or begun.line == at.line:
        return str(problem)
    return f"{problem} ({error.context} that begins in line {begun.line + 1})"  # type: ignore[attr-defined]


def yaml_1_2() -> YAML:
    return YAML(typ="safe", pure=True)  # YAML 1.2: 1e-5 is a number, on and yes are text


@dataclass
class _Builder:
    """Turn YAML nodes into plain values, and note the origin of each."""

    origins: dict[Key, Origin]
    at: Callable[[int], Origin]  # maps a line, counted from 1, to its origin
    problems: Problems
    scalars: Any = field(default_factory=lambda: yaml_1_2().constructor)

    def build(self, node: Node, key: Key, above: tuple[Node, ...] = ()) -> Any:
        origin = self.at(node.start_mark.line + 1)
        self.origins[key] = origin
        if node in above:
            self.problems.add(origin, key, "an anchor that contains itself")
        elif isinstance(node, MappingNode):
            return self._mapping(node, key, (*above, node))
        elif isinstance(node, SequenceNode):
            return [self.build(item, (*key, index), (*above, node)) for index, item in enumerate(node.value)]
        elif node.tag in (_TAG + "timestamp", _TAG + "merge"):  # text in YAML 1.2
            return node.value
        else:
            try:
                return self.scalars.construct_object(node)
            except (YAMLError, ValueError):
                self.problems.add(origin, key, f"cannot be read as {node.tag}", "remove the tag")
        return None

    def _mapping(self, node: MappingNode, key: Key, above: tuple[Node, ...]) -> dict[str, Any]:
        built: dict[str, Any] = {}
        own: set[str] = set()
        for name_node, child in sorted(node.value, key=lambda pair: pair[0].tag != _TAG + "merge"):  # `<<` first
            if name_node.tag == _TAG + "merge":
                for part in reversed(child.value) if isinstance(child, SequenceNode) else [child]:  # the first wins
                    merged = self.build(part, key, above)
                    built |= merged if isinstance(merged, dict) else {}
                continue
            name, origin = str(name_node.value), self.at(name_node.start_mark.line + 1)
            here = (*key, name)
            if name in own:
                first = self.origins[here].where.rpartition(":")[2]
                self.problems.add(origin, here, f"stands twice; the first is on line {first}", "remove one of them")
                continue
            own.add(name)
            built[name] = self.build(child, here, above)
            self.origins[here] = origin
        return built


def read_overrides(overrides: Sequence[str], problems: Problems) -> Layer:
    """Read all `--set` values as one layer; paths in them start from the current directory."""
    layer = Layer()
    for index, text in enumerate(overrides):
        origin = Origin(f"--set {text}", Path.cwd(), (1_000_000, index))
        match = _SET.fullmatch(text)
        if match is None:
            problems.add(origin, (), "is not of the form key=value", "write it as --set ppo.kl_coef=0.1")
            continue
        names = tuple(match[1].split("."))
        try:
            node = yaml_1_2().compose(match[2])
        except YAMLError as error:
            problems.add(origin, names, f"the value is not valid YAML: {_reason(error)}", "put it in quotes")
            continue
        if node is None or names == ("extends",):
            empty = ("the value is empty", f"write --set {match[1]}=null to unset it")
            problems.add(origin, names, *(empty if node is None else ("is read from the recipe file only",)))
            continue
        section = layer.data
        for name in names[:-1]:
            section[name] = section[name] if isinstance(section.get(name), dict) else {}
            section = section[name]
        section[names[-1]] = _Builder(layer.origins, lambda _, here=origin: here, problems).build(node, names)  # type: ignore[misc]
        layer.origins |= {names[:depth]: origin for depth in range(1, len(names))}
    return name_lists(layer)


def list_items(text: str) -> tuple[list[str], str | None]:
    """Return the items of a YAML list that is written without its brackets, each as it was typed; or why it is none."""
    whole = f"[{text}]"
    try:
        node = yaml_1_2().compose(whole)
    except YAMLError as error:
        return [], f"the values are not valid YAML: {_reason(error)}"
    if not isinstance(node, SequenceNode) or node.end_mark.index != len(whole):
        return [], "the values are not a list"
    items = [whole[item.start_mark.index : item.end_mark.index].strip() for item in node.value]
    return items, None if items else "there is no value"
