"""Compute what a stage depends on: its parents, and a fingerprint of each input of its result.

Reads the recipe, manifests, and the files that the recipe names. Loads no torch: stages/door.py calls the libraries.
Leaves out which inputs a stage has, which is in the table of graph.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhfctl import fs, graph, run_stages, seeding, stage_order
from rlhfctl.artifacts import Artifact, Source, changed_keys, find_artifact, load_artifact, resolve_source
from rlhfctl.graph import STAGES, Parent, Request
from rlhfctl.paths import RunPaths, StageId
from rlhfctl.recipe.made_data import made_data, source_stages, with_sources
from rlhfctl.recipe.schema import Data, Recipe
from rlhfctl.stages import door

_NEWER_KEYS = ("attn_implementation", "chat_template_kwargs", "template_tokens", "template_date")  # of `model`
_LOADING = {"dtype", "quantization", "trust_remote_code", "attn_implementation", "template_date"}  # of `model`


def parents_of(stage: StageId, recipe: Recipe, paths: RunPaths, request: Request) -> dict[str, Source]:
    """Return the parents of a stage by role: stages of this run, or models that the command or the recipe names.

    A stage that makes rows for this one has its own name as role, and a stage of one seed that this one gathers the
    seed's (`seed-1`).
    """
    sources: dict[str, Source] = {}
    for role, parent in STAGES[stage.name].parents.items():
        if not parent.used(recipe) or parent.unless in request.options or (parent.earlier and stage.round == 1):
            continue
        named = request.external.get(role) or parent.named(recipe)
        if named is not None:
            sources[role] = resolve_source(named, parent.called or role)
        elif _has_maker(parent, recipe):
            sources[role] = _made_here(stage, parent, recipe, paths)
    goes_on = STAGES[stage.name].makes == "policy" and "start" in sources
    if goes_on and recipe.rounds is not None and recipe.rounds.reference == "last":
        sources["base"] = sources.pop("start")  # it is the reference, and a new adapter on it starts as it is
    for name in source_stages(graph.data_of_kind(stage.name, recipe), recipe.data):
        sources[name] = Source.of(load_artifact(paths.stage(_maker(stage, [name], recipe, paths))))
    for one in stage_order.gathered_by(stage, stage_order.in_order(recipe)):
        sources[one.group] = Source.of(load_artifact(paths.stage(one)))
    return sources


def _has_maker(parent: Parent, recipe: Recipe) -> bool:
    if parent.makes is None:
        return False
    return not parent.optional or any(name in graph.makers_of(parent.makes) for name in graph.stages_of(recipe))


def _made_here(stage: StageId, parent: Parent, recipe: Recipe, paths: RunPaths) -> Source:
    """Return the product of a stage of this run; if the run lacks it, the model that its policy was trained on."""
    assert parent.makes is not None
    maker = paths.stage(_maker(stage, graph.makers_of(parent.makes), recipe, paths))
    if find_artifact(maker) is None and parent.makes != "policy":
        given = _given_to_policy(stage, parent.makes, recipe, paths)
        if given is not None:
            return given
    return Source.of(load_artifact(maker))


def _given_to_policy(stage: StageId, product: str, recipe: Recipe, paths: RunPaths) -> Source | None:
    """Return the `product` that the policy of `stage` was trained on (`ppo --policy`, `--reward-model`)."""
    if not any(one.makes == "policy" and not one.earlier for one in STAGES[stage.name].parents.values()):
        return None
    maker = _maker(stage, graph.makers_of("policy"), recipe, paths)
    policy = find_artifact(paths.stage(maker))
    roles = [role for role, parent in STAGES[maker.name].parents.items() if parent.makes == product]
    recorded = [role for role in roles if policy is not None and role in policy.manifest.parents]
    return policy.parent(recorded[0]) if policy is not None and recorded else None


def _maker(stage: StageId, names: list[str], recipe: Recipe, paths: RunPaths) -> StageId:
    """Return the last stage before `stage` with one of `names`; if the run has none, the one that would run."""
    known = stage_order.within_rounds(stage, recipe, run_stages.stages_in(recipe, paths))
    maker = stage_order.latest_before(stage, names, known)
    if maker is not None:
        return maker
    return StageId(stage.round, names[-1], stage.seed if names[-1] in stage_order.seeded_stages(recipe) else None)


def inputs_of(
    stage: StageId, recipe: Recipe, paths: RunPaths, data: Mapping[str, Any], request: Request
) -> dict[str, str]:
    """Return a fingerprint of everything that a stage's result depends on, by name. `data`: rows by data set."""
    parents = {role: source.fingerprint for role, source in parents_of(stage, recipe, paths, request).items()}
    return _inputs(stage, recipe, data, parents, request.options)


def _inputs(
    stage: StageId, recipe: Recipe, data: Mapping[str, Any], parents: Mapping[str, str], options: Mapping[str, Any]
) -> dict[str, str]:
    """Return the inputs of a stage; `parents` and `options`: their fingerprints and the command's options."""
    kind = STAGES[stage.name]
    inputs = {"section": section_fingerprint(stage.name, recipe), "seed": str(seeding.recipe_of(stage, recipe).seed)}
    if kind.model == "loading":
        loading = recipe.model.model_dump(mode="json", include=_LOADING - unused_newer_keys(recipe))
        inputs["model"] = fs.hash_json(loading)
    elif kind.model == "weights":
        inputs["model"] = model_fingerprint(recipe)
    for name in graph.data_of_kind(stage.name, recipe):
        if name in data:
            keys = section_without_sources(getattr(recipe.data, name))
            inputs[f"data.{name}"] = fs.hash_json([keys, data[name].fingerprint, recipe.data_seed])
    if kind.prompt_lengths:
        inputs["data.prompt_lengths"] = fs.hash_json([recipe.data.max_prompt_length, recipe.data.overlong_prompts])
    inputs |= parents
    for name, values in kind.settings(recipe).items():
        inputs[name] = fs.hash_json(values)
    if functions := kind.functions(recipe):
        folder = Path(recipe.folder or ".")
        inputs["functions"] = fs.hash_json([door.function_fingerprint(spec, folder) for spec in functions])
    for option in kind.files:
        if option in options:
            inputs[option] = fs.hash_file(Path(options[option]))
    return inputs


def foreseen(recipe: Recipe) -> dict[StageId, str]:
    """Return a hash of everything that decides on each stage, before any stage is made, in the order of a run.

    Stages of two recipes with equal hashes will have equal inputs, as long as the files that the recipes name stay as
    they are. Rows count by the keys of their data set, and not by their content.
    """
    found: dict[StageId, str] = {}
    for stage in stage_order.in_order(recipe):
        own = {str(parent): found[parent] for parent in stage_order.own_parents(stage, recipe, [*found])}
        named = {role: parent.named(recipe) for role, parent in STAGES[stage.name].parents.items()}
        keys = {name: getattr(recipe.data, name) for name in graph.data_of_kind(stage.name, recipe)}
        rows = {name: section.model_dump(mode="json") for name, section in keys.items() if section is not None}
        found[stage] = fs.hash_json(
            [str(stage), _inputs(stage, recipe, {}, own, {}), {**named}, rows, recipe.data_seed]
        )
    return found


def section_fingerprint(name: str, recipe: Recipe) -> str:
    """Return the hash of the section that a stage is made from."""
    return fs.hash_json(graph.section_of(name, recipe).as_input())


def section_without_sources(section: Any) -> dict[str, Any]:
    """Return a data set's keys without the names of its sources: their content counts, not their path."""
    names: dict[str, Any] = {"source": True, "sources": {"__all__": {"source"}}}
    names |= {"eval_source": {"source"}, "test_source": {"source"}}
    found: dict[str, Any] = section.model_dump(mode="json", exclude=names)
    return found


def model_fingerprint(recipe: Recipe) -> str:
    """Return the hash of the recipe's `model`: its keys, and the content of the folders that it names."""
    path = recipe.model.path
    content: Any = None
    if path is not None and Path(path).is_dir():
        content = fs.hash_tree(Path(path))
        bases = [fs.hash_tree(Path(base)) if Path(base).is_dir() else base for base in door.bases_of(path)]
        content = [content, *bases] if bases else content
    template = recipe.model.chat_template
    template_text = None
    if template is not None and template.endswith((".jinja", ".j2")):
        template_text = fs.hash_file(Path(template))
    exclude = unused_newer_keys(recipe) | ({"path"} if content else set())
    return fs.hash_json([recipe.model.model_dump(mode="json", exclude=exclude), content, template_text])


def unused_newer_keys(recipe: Recipe) -> set[str]:
    """Return unused keys of `model` that older recipes did not have; without them older stages stay unchanged."""
    fields = type(recipe.model).model_fields
    return {key for key in _NEWER_KEYS if getattr(recipe.model, key) == fields[key].default}


def describe_changes(changed: list[str], artifact: Artifact, name: str, recipe: Recipe) -> str:
    """Name the inputs that changed; for the stage's section also the keys with both values."""
    keys = changed_keys(artifact.manifest.section, graph.section_of(name, recipe).model_dump(mode="json"))
    words = [
        f"{changed_input} ({', '.join(keys)})" if changed_input == "section" and keys else changed_input
        for changed_input in changed
    ]
    return ", ".join(words)


# ---------------------------------------------------------------- data that stages make


def made_data_of(stage: StageId, recipe: Recipe, paths: RunPaths) -> Data | None:
    """Return the recipe's data for the stage, with sets that other stages make read from their artifacts.

    Other sets that stages make are left out. None: the stage reads no such set, or one that is not complete.
    """
    own = [name for name in made_data(recipe.data) if name in graph.data_of_kind(stage.name, recipe)]
    makers = source_stages(own, recipe.data)
    made = {name: find_artifact(paths.stage(_maker(stage, [name], recipe, paths))) for name in makers}
    places = {name: str(artifact.part("data")) for name, artifact in made.items() if artifact is not None}
    if not own or len(places) < len(made):
        return None
    left_out: dict[str, Any] = dict.fromkeys(made_data(recipe.data))
    return recipe.data.model_copy(
        update=left_out | {name: with_sources(getattr(recipe.data, name), places) for name in own}
    )


def read_made_data(stage: StageId, recipe: Recipe, paths: RunPaths, data: Mapping[str, Any]) -> dict[str, Any]:
    """Read the stage's data sets that other stages have made and that are not in `data` yet.

    Returns nothing if these stages are not complete. Their files are verified first.
    """
    section = made_data_of(stage, recipe, paths)
    if section is None:
        return {}
    for name in source_stages(graph.data_of_kind(stage.name, recipe), recipe.data):
        load_artifact(paths.stage(_maker(stage, [name], recipe, paths))).verify()
    made = [
        name for name in made_data(recipe.data) if name in graph.data_of_kind(stage.name, recipe) and name not in data
    ]
    return door.load_data(section, recipe.data_seed, made, steady=recipe.has_steady_splits) if made else {}


def remade_data(recipe: Recipe) -> list[str]:
    """List the data sets that a stage makes once per seed or once per round."""
    again = set(stage_order.seeded_stages(recipe))
    if recipe.rounds is not None:
        again |= {name for name, stage in STAGES.items() if stage.repeats}
    return [name for name in made_data(recipe.data) if again & set(source_stages([name], recipe.data))]


def data_of(stage: StageId, recipe: Recipe, paths: RunPaths, data: Mapping[str, Any]) -> dict[str, Any]:
    """Return `data` for a stage: sets made once per seed or round are read from the stages of its own."""
    again = remade_data(recipe) if stage.seed is not None or recipe.rounds is not None else []
    rest = {name: rows for name, rows in data.items() if name not in again}
    return rest | (read_made_data(stage, recipe, paths, rest) if again else {})
