"""From files to a Recipe: YAML 1.2, `extends:`, `--set`, paths, and every problem at once with file and line.

Reads the recipe file, the files that it extends and the environment variables that its paths name; writes nothing.
Leaves out what the keys mean (schema.py) and, under `trainer:`, everything but the keys that rlhfctl owns.

A file becomes a `_Layer`: plain values, and beside them where each stands. Layers are merged from the last ancestor
to the recipe and then `--set`, so that a value keeps the file, line and folder it was stated in.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any, NoReturn

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode

from rlhfctl.errors import Problem, RecipeError, RlhfctlError
from rlhfctl.recipe.schema import (
    BUILTIN_DATA_KEYS,
    ONE_SOURCE_KEYS,
    OWN_DATA_KEYS,
    STAGE_SOURCE,
    Key,
    Recipe,
    looks_like_id,
)
from rlhfctl.recipe.shipped import ROOTS as _SHIPPED
from rlhfctl.recipe.shipped import shipped_recipes
from rlhfctl.recipe.words import describe, did_you_mean, dotted, help_of, shortened, unknown_key, wrong_value

_DATA_SETS: tuple[Key, ...] = tuple(("data", name) for name in ("demonstrations", "preferences", "prompts"))
_MODELS = (("model", "path"), ("reward", "model"))
_NO_PLACE = ("builtin:", STAGE_SOURCE)  # what begins so is no path
_LONGEST_PROBLEM = 600
_TAG = "tag:yaml.org,2002:"
_VARIABLE = re.compile(r"\$\{(\w+)\}")
_SET = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)=(.*)", re.DOTALL)

_TRAINING = ("lora", "trainer", "checkpoint_steps")
# A key that the upper file states takes the place of these keys of the lower file.
_REPLACES: dict[Key, dict[str, tuple[str, ...]]] = {
    ("model",): {"init": ("path", "revision", "trust_remote_code"), "path": ("init", "revision")},
    ("model", "init"): {"tokens": ("vocab_size",), "vocab_size": ("tokens",)},
    ("reward",): {
        **{"model": ("function", *_TRAINING), "function": ("model", *_TRAINING)},
        **dict.fromkeys(_TRAINING, ("model", "function")),
    },
}
# What a required key is given while the rest is checked, once its own problem is noted.
_STAND_INS: dict[str, Any] = {"name": "recipe", "model": {"path": "model"}}


@dataclass(frozen=True)
class LoadedRecipe:
    """A valid, resolved recipe, the file it was read from (absolute), that file's folder, and where each key stands."""

    recipe: Recipe
    path: Path
    folder: Path
    places: Mapping[str, str] = field(default_factory=dict)  # "sft.trainer.optim" -> "recipe.yaml:11"

    @contextmanager
    def placing(self) -> Iterator[None]:
        """Errors about the recipe's keys leave the block with the file and line where these stand."""
        try:
            yield
        except RlhfctlError as error:
            error.place(self.places)
            raise


@dataclass(frozen=True)
class _Origin:
    """Where a value stands: as shown, the folder its paths start from, and its place among all (layer, line)."""

    where: str
    folder: Path
    order: tuple[int, int] = (0, 0)


@dataclass
class _Layer:
    data: dict[str, Any] = field(default_factory=dict)
    origins: dict[Key, _Origin] = field(default_factory=dict)

    def get(self, key: Key) -> Any:
        reached, value = _reach(self.data, key)
        return value if reached == key else None

    def origin(self, key: Key) -> _Origin:
        """Of the key, or of the nearest section above it that is there."""
        return self.origins[_reach(self.data, key)[0]]


class _Problems:
    """Collects problems; sorted by file and line in the end."""

    def __init__(self) -> None:
        self.found: list[tuple[tuple[int, int], Problem]] = []

    def add(self, origin: _Origin, key: Key, what: str, fix: str | None = None) -> None:
        said = Problem(shortened(dotted(key)), shortened(what, _LONGEST_PROBLEM), shortened(origin.where), fix)
        self.found.append((origin.order, said))

    def stop(self) -> NoReturn:
        raise RecipeError([problem for _, problem in sorted(self.found, key=lambda pair: pair[0])])


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """The recipe at a path (or a shipped one, by name) with `--set` values on top; RecipeError with all problems."""
    file = find_recipe(str(path)).absolute()
    problems = _Problems()
    changes = _read_overrides(overrides, problems)
    merged = _Layer()
    for layer in [*reversed(_read_chain(file, problems)), changes]:
        merged = _merge(merged, layer)
    _resolve_paths(merged, problems)
    places = {dotted(key): origin.where for key, origin in merged.origins.items()}
    return LoadedRecipe(_recipe_of(merged, problems), file, file.parent, places)


def outline(path: Path | str) -> Recipe:
    """The recipe at a path as its text says it, without looking for the files and models that it names.

    For lists: a recipe whose data is not there yet, or no longer, still says what it does.
    """
    problems = _Problems()
    merged = _Layer()
    for layer in reversed(_read_chain(find_recipe(str(path)).absolute(), problems)):
        merged = _merge(merged, layer)
    return _recipe_of(merged, problems)


def _recipe_of(merged: _Layer, problems: _Problems) -> Recipe:
    recipe = _validate(merged, problems)
    if problems.found or recipe is None:
        problems.stop()
    return recipe


def find_recipe(name: str) -> Path:
    """A path as given, or the file of a shipped recipe given its name ("quickstart")."""
    path = Path(name)
    if path.is_file():
        return path
    shipped = shipped_recipes(_SHIPPED)
    if name in shipped:
        return shipped[name]
    beside = [str(file) for file in path.parent.glob("*.y*ml")]
    what = "is a folder, not a recipe" if path.is_dir() else "there is no such file, nor a shipped recipe of that name"
    fix = f"shipped recipes: {', '.join(sorted(shipped))}" if shipped else None
    raise RecipeError([Problem("", what + did_you_mean(name, [*shipped, *beside]), name, fix)])


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML text that loads to an equal one."""
    yaml = _yaml()
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    text = StringIO()
    yaml.dump(recipe.model_dump(mode="json"), text)
    return text.getvalue()


def _read_chain(file: Path, problems: _Problems) -> list[_Layer]:
    """The recipe's layer, then those of the files that it extends."""
    files, layers = [file], [_read_file(file, 0, problems)]
    while "extends" in layers[-1].data:
        stated, key, origin = layers[-1].data.pop("extends"), ("extends",), layers[-1].origins[("extends",)]
        name = stated[0] if isinstance(stated, list) and len(stated) == 1 else stated
        if not isinstance(name, str) or not name:
            problems.add(origin, key, f"expected the path of one recipe file, got {describe(stated)}")
            problems.stop()
        expanded = _expand(name, key, origin, problems)
        if expanded is None:
            problems.stop()
        file = _absolute(expanded, origin.folder)
        if file in files:
            circle = " -> ".join(_shown(path) for path in [*files[files.index(file) :], file])
            problems.add(origin, key, f"goes round in a circle: {circle}", "remove one of them")
            break
        if not file.is_file():
            problems.add(origin, key, f"there is no file {_shown(file)}{_near_file(file)}")
            problems.stop()
        files.append(file)
        layers.append(_read_file(file, len(layers), problems))
    return layers


def _read_file(file: Path, number: int, problems: _Problems) -> _Layer:
    def at(line: int) -> _Origin:
        return _Origin(f"{_shown(file)}:{line}", file.parent, (number, line))

    origins: dict[Key, _Origin] = {}
    line, fault, data, text = 1, "", None, ""
    try:
        text = file.read_text(encoding="utf-8")
        root = _yaml().compose(text)
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
    return _with_lists_named(_Layer(data, origins | {(): at(1)}))


def _reason(error: YAMLError) -> str:
    problem = getattr(error, "problem", None) or " ".join(str(error).split())
    begun, at = getattr(error, "context_mark", None), getattr(error, "problem_mark", None)
    if begun is None or at is None or begun.line == at.line:
        return str(problem)
    return f"{problem} ({error.context} that begins in line {begun.line + 1})"  # type: ignore[attr-defined]


def _yaml() -> YAML:
    return YAML(typ="safe", pure=True)  # YAML 1.2: 1e-5 is a number, on and yes are text


@dataclass
class _Builder:
    """Turns YAML nodes into plain values, and notes the origin of everything in them."""

    origins: dict[Key, _Origin]
    at: Callable[[int], _Origin]  # from a line, counted from 1
    problems: _Problems
    scalars: Any = field(default_factory=lambda: _yaml().constructor)

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


def _read_overrides(overrides: Sequence[str], problems: _Problems) -> _Layer:
    """All `--set` values as one layer; paths in them start from the current directory."""
    layer = _Layer()
    for index, text in enumerate(overrides):
        origin = _Origin(f"--set {text}", Path.cwd(), (1_000_000, index))
        match = _SET.fullmatch(text)
        if match is None:
            problems.add(origin, (), "is not of the form key=value", "write it as --set ppo.kl_coef=0.1")
            continue
        names = tuple(match[1].split("."))
        try:
            node = _yaml().compose(match[2])
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
    return _with_lists_named(layer)


def _merge(low: _Layer, high: _Layer) -> _Layer:
    """High over low: mappings are merged, everything else is replaced."""
    merged = _Layer(deepcopy(low.data), dict(low.origins))

    def into(target: dict[str, Any], section: dict[str, Any], key: Key) -> None:
        replaces = dict(_REPLACES.get(key, {}))
        if key in _DATA_SETS:
            to_builtin = str(section.get("source")).startswith("builtin:")
            replaces["source"] = ("sources", *(OWN_DATA_KEYS if to_builtin else BUILTIN_DATA_KEYS))
            replaces["sources"] = ONE_SOURCE_KEYS
        for gone in {gone for name, value in section.items() if value is not None for gone in replaces.get(name, ())}:
            target.pop(gone, None)
        for name, value in section.items():
            here = (*key, name)
            if isinstance(value, dict) and isinstance(target.get(name), dict):
                into(target[name], value, here)
                if () in high.origins:  # a file; after `--set` the section itself still stands where it stood
                    merged.origins[here] = high.origins[here]
            else:
                target[name] = deepcopy(value)
                merged.origins |= {deep: origin for deep, origin in high.origins.items() if deep[: len(here)] == here}

    into(merged.data, high.data, ())
    merged.origins |= {(): high.origins[()]} if () in high.origins else {}
    return merged


def _resolve_paths(layer: _Layer, problems: _Problems) -> None:
    """Make paths absolute, from the folder of the file that states them, and see that they are there."""
    sources = list(_source_keys(layer))
    for key in (("folder",), *sources, *_MODELS, ("model", "chat_template")):
        text = layer.get(key)
        if not isinstance(text, str) or not text or (key in sources and text.startswith(_NO_PLACE)):
            continue
        if key[-1] == "chat_template" and not text.endswith((".jinja", ".j2")):
            continue  # the template itself
        origin = layer.origin(key)
        expanded = _expand(text, key, origin, problems)
        if expanded is None:
            continue
        path = _absolute(expanded, origin.folder)
        is_folder = key[-1] in ("folder", "path", "model")
        try:
            there = path.is_dir() if is_folder else path.exists() if key in sources else path.is_file()
        except OSError:  # a name that no file can have
            there = False
        may_be_id = key in _MODELS or (key in sources and looks_like_id(expanded))
        if may_be_id and not there and not expanded.startswith((".", "/", "~")):
            path = Path(expanded)  # an id on the Hub
        elif key != ("folder",) and not there:
            kind = "folder" if is_folder else "file"
            problems.add(origin, key, f"there is no {kind} {_shown(path)}{_near_file(path)}")
        layer.get(key[:-1])[key[-1]] = str(path)
    if layer.get(("folder",)) is None:
        layer.data["folder"] = str(layer.origin(("reward", "function")).folder)


def _source_keys(layer: _Layer) -> Iterator[Key]:
    """Where the recipe names sources of data: of a set, of each source in a list, of prompts that are kept apart."""
    for at in _DATA_SETS:
        yield (*at, "source")
        listed = layer.get((*at, "sources"))
        yield from (
            (*at, "sources", index, "source") for index in range(len(listed) if isinstance(listed, list) else 0)
        )
        for name in ("eval_source", "test_source"):
            key = (*at, name)
            yield (*key, "source") if isinstance(layer.get(key), dict) else key


def _with_lists_named(layer: _Layer) -> _Layer:
    """The layer with a data set that is a list of sources written as {sources: [...]}."""
    data = layer.data.get("data")
    for at in _DATA_SETS:
        name = at[-1]
        if isinstance(data, dict) and isinstance(data.get(name), list):
            data[name] = {"sources": data[name]}
            moved = {key: origin for key, origin in layer.origins.items() if key[:2] == at}
            layer.origins |= {(*at, "sources", *key[2:]): origin for key, origin in moved.items()}
    return layer


def _expand(text: str, key: Key, origin: _Origin, problems: _Problems) -> str | None:
    """Text with ${VAR} from the environment; None, and a problem, where a variable is not set."""
    unset = [name for name in _VARIABLE.findall(text) if name not in os.environ]
    for name in unset:
        problems.add(origin, key, f"the environment variable {name} is not set", f"export {name}=...")
    return None if unset else _VARIABLE.sub(lambda match: os.environ[match[1]], text)


def _absolute(text: str, folder: Path) -> Path:
    return Path(os.path.normpath(folder / Path(text).expanduser()))


def _shown(path: Path) -> str:
    return shortened(str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path))


def _near_file(path: Path) -> str:
    try:
        return did_you_mean(path.name, [other.name for other in path.parent.iterdir()])
    except OSError:
        return ""


def _validate(layer: _Layer, problems: _Problems) -> Recipe | None:
    """The recipe; with faulty keys noted and left out, so that the rules about several keys still run on the rest."""
    data = deepcopy(layer.data)
    cuts: set[Key] = set()  # what was left out, or was meant by a misspelt key: rules about these say nothing
    for attempt in itertools.count():
        try:
            return Recipe.model_validate(data)
        except ValidationError as error:
            details = error.errors(include_url=False)
        if details[0]["type"] == "conflicts":
            for conflict in details[0]["ctx"]["conflicts"]:
                keys = [_key_of(text) for text in (conflict.key, *conflict.about) if text]
                if not any(key[: len(cut)] == cut for key in keys for cut in cuts):
                    key = keys[0] if conflict.key else ()
                    problems.add(layer.origin(key), key, conflict.what, conflict.fix)
            break
        faults: dict[Key, list[Any]] = {}
        for detail in details:
            missing = detail["loc"][-1:] if detail["type"] == "missing" else ()
            # Pydantic's location also names the types that it tried; those are not in the data.
            faults.setdefault(_reach(data, detail["loc"])[0] + missing, []).append(detail)
        if attempt == 0:
            cuts |= _note(faults, layer, problems)
        for key, (detail, *_) in faults.items():
            whole = key[:-1] or key if detail["type"] == "missing" else key  # the section that cannot do without it
            cut = tuple(itertools.takewhile(lambda part: isinstance(part, str), whole))  # or the list that it is in
            section = _reach(data, cut[:-1])[1]
            if isinstance(section, dict):
                section.pop(cut[-1], None)
            cuts |= set() if detail["type"] == "extra_forbidden" and cut == whole else {cut}
        data = {**_STAND_INS, **data}
    return None


def _key_of(text: str) -> Key:
    """A conflict's dotted key; its numbers count the items of a list."""
    return tuple(int(part) if part.isdecimal() else part for part in text.split("."))


def _note(faults: dict[Key, list[Any]], layer: _Layer, problems: _Problems) -> set[Key]:
    """Pydantic's errors as problems in plain words; returns the keys that were probably meant by unknown ones."""
    meant: set[Key] = set()
    for key, (detail, *_) in faults.items():
        if detail["type"] == "extra_forbidden":
            what, fix, near = unknown_key(key)
            meant |= {(*key[:-1], near)} if near else set()
            problems.add(layer.origin(key), key, what, fix)
    for key, details in faults.items():
        if details[0]["type"] == "missing" and key not in meant:
            problems.add(layer.origin(key), key, "missing", f"add it: {help_of(key)}")
        # Where an item of a value is at fault, that says more than that the value is not of another type.
        deeper = any(key != other and other[: len(key)] == key for other in faults)
        if details[0]["type"] not in ("missing", "extra_forbidden") and not deeper:
            problems.add(layer.origin(key), key, wrong_value(key, details))
    return meant


def _reach(data: dict[str, Any], key: Key) -> tuple[Key, Any]:
    """As far as the data goes along a key, and what stands there; a part that is not in the data is passed over."""
    reached: Key = ()
    value: Any = data
    for part in key:
        if isinstance(value, list) if isinstance(part, int) else (isinstance(value, dict) and part in value):
            reached, value = (*reached, part), value[part]
    return reached, value
