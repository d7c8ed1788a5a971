"""Define the rules between the sections of a recipe as data: what one section needs of another.

Rules about the keys of a single section are in that section (sections/). Those on labels and rounds are in
label_rules.py, on PPO's algorithms and losses in ppo_rules.py, on judges in judge_rules.py, on sft's checkpoint in
choice_rules.py, on several processes in process_rules.py. Keys and placeholders here are paths from the top of the
recipe. Longer than 400 lines because such a rule belongs to no section, and all of them are read in order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rlhfctl.recipe.choice_rules import CHOICE
from rlhfctl.recipe.judge_rules import JUDGES, PROMPT_SEARCH
from rlhfctl.recipe.label_rules import LABELS
from rlhfctl.recipe.ppo_rules import ALGORITHMS, OUTCOME_CRITIC, PTX
from rlhfctl.recipe.process_rules import PROCESSES
from rlhfctl.recipe.sections.base import DataNeed, Rule, Stage
from rlhfctl.recipe.sections.ppo import Ppo
from rlhfctl.recipe.sections.reward import Reward
from rlhfctl.recipe.sections.scorers import REWARD, is_address
from rlhfctl.recipe.sections.seeds import LARGEST_SEED
from rlhfctl.recipe.sections.sft import Sft
from rlhfctl.recipe.sections.whole import Broken, Sections, classifies, quantized

# ---------------------------------------------------------------- stages need data and other stages


def _reads_data(stage: str) -> Broken:
    def needed(recipe: Sections) -> bool:
        section: Stage | None = getattr(recipe, stage)
        return section is not None and section.needs_data

    return needed


def _trains_tokenizer_alone(recipe: Sections) -> bool:
    return recipe.sft is None and recipe.model.init is not None and recipe.model.init.tokens is None


def _data_rule(key: str, need: DataNeed, needed: Broken) -> Rule[Sections]:
    """The rule that `key` needs a data set where `needed` says so."""
    return Rule(
        key,
        f"needs data.{need.name} {need.use}",
        f"add data.{need.name}{need.otherwise}",
        lambda recipe: needed(recipe) and getattr(recipe.data, need.name) is None,
        about=(f"data.{need.name}", "model.init.tokens"),
    )


TOKENIZER_NEED = DataNeed(
    "demonstrations", "to train the tokenizer on", ", or list whole tokens under model.init.tokens"
)


def stage_rules(stages: Mapping[str, type[Stage]]) -> tuple[Rule[Sections], ...]:
    """The rules that there is a stage at all, and that each has the data sets it needs. `stages`: by key."""
    names = tuple(stages)
    return (
        Rule(
            "",
            "no stage to run",
            f"add a section: {', '.join(names)}",
            lambda recipe: all(getattr(recipe, stage) is None for stage in names),
            about=names,
        ),
        _data_rule("model.init", TOKENIZER_NEED, _trains_tokenizer_alone),
        *(_data_rule(stage, need, _reads_data(stage)) for stage, section in stages.items() for need in section.NEEDS),
    )


TWO_POLICIES: Rule[Sections] = Rule(
    "dpo",
    "trains the policy in place of ppo, and the recipe has both",
    "remove one of them, or write two recipes",
    lambda recipe: recipe.dpo is not None and recipe.ppo is not None,
    about=("ppo",),
)


def _best_without_prompts(recipe: Sections) -> bool:
    ppo, prompts = recipe.ppo, recipe.data.prompts
    return ppo is not None and ppo.use == "best" and prompts is not None and prompts.eval == 0


def _batch_above_prompts(recipe: Sections) -> bool:
    # TRL's loader drops a last batch that is not full; without any full batch it waits forever.
    ppo, prompts = recipe.ppo, recipe.data.prompts
    if ppo is None or prompts is None or prompts.known_train_rows is None:
        return False
    return 0 < prompts.known_train_rows < ppo.prompts_per_batch


def _critic_without_states(key: str) -> Broken:
    """Tell whether the critic is to read a reward model's states, but `key` of the reward section says another kind."""

    def broken(recipe: Sections) -> bool:
        ppo, reward = recipe.ppo, recipe.reward
        reads = ppo is not None and ppo.critic == "reward"
        return reads and reward is not None and getattr(reward, key) is not None

    return broken


def _scores_nothing(recipe: Sections) -> bool:
    ppo = recipe.ppo
    return ppo is not None and recipe.reward is None and REWARD in (ppo.rewards or (REWARD,))


def _asks_no_server(recipe: Sections) -> bool:
    reward, ppo, compare = recipe.reward, recipe.ppo, recipe.compare
    choose = recipe.sft.choose if recipe.sft is not None else None
    if reward is None or reward.server is None:
        return False
    named = [
        reward.function or "",
        choose.by if choose is not None else "",
        *((ppo.rewards or {}) if ppo else {}),
        *((*compare.judges, *compare.metrics) if compare else ()),
    ]
    return not any(map(is_address, named))


def _nothing_to_compare(recipe: Sections) -> bool:
    ppo, prompts = recipe.ppo, recipe.data.prompts
    if ppo is None or prompts is None or recipe.reward is None or recipe.reward.prompted_classifier is None:
        return False
    alone = prompts.fixed_prompt is None and ppo.num_generations == 1
    return alone and recipe.reward.prompted_classifier.zscore


PPO_NEEDS: tuple[Rule[Sections], ...] = (
    Rule(
        "ppo",
        "needs something that scores responses",
        "add a reward section: `reward: {{}}` trains a model on data.preferences; or ppo.rewards without `reward`",
        _scores_nothing,
        about=("reward", "ppo.rewards"),
    ),
    Rule(
        "reward.server",
        "is not used: no scorer is an address, http://...",
        "remove it, or name one in reward.function, ppo.rewards, compare.judges or sft.choose.by",
        _asks_no_server,
        about=("reward.function", "ppo.rewards", "compare.judges", "sft.choose.by"),
    ),
    *(
        Rule[Sections](
            "ppo.critic",
            f"reward is a head on the states of a reward model at the policy's tokens, but the reward is {what}",
            "use critic: adapter, head or model",
            _critic_without_states(key),
            about=(f"reward.{key}",),
        )
        for key, what in (
            ("function", "a Python function"),
            ("unit_tests", "the outcome of unit tests"),
            ("prompted_classifier", "that of a frozen classifier"),
            ("label", "a classifier"),
            ("reads", "a classifier"),
        )
    ),
    Rule(
        "reward.prompted_classifier.zscore",
        "compares the responses to one prompt, but each prompt has one: every score would be 0",
        "set data.prompts.fixed_prompt, raise ppo.num_generations, or set zscore: false",
        _nothing_to_compare,
        about=("data.prompts.fixed_prompt", "ppo.num_generations"),
    ),
    Rule(
        "ppo.engine",
        "TRL's PPOTrainer scores parts of a batch, but a prompt is scored with all examples of its batch",
        "use engine: rlhfctl",
        lambda recipe: classifies(recipe) and recipe.ppo is not None and recipe.ppo.engine == "trl",
        about=("reward.prompted_classifier",),
    ),
    Rule(
        "ppo.use",
        "best is chosen on the eval prompts, but data.prompts.eval is 0",
        "set data.prompts.eval above 0, or use: last",
        _best_without_prompts,
        about=("data.prompts.eval", "ppo.eval.every"),
    ),
    Rule(
        "ppo.use",
        "best is chosen by evaluations, but ppo.eval.every is 0",
        "set ppo.eval.every above 0, or use: last",
        lambda recipe: recipe.ppo is not None and recipe.ppo.use == "best" and recipe.ppo.eval.every == 0,
        about=("data.prompts.eval", "ppo.eval.every"),
    ),
    Rule(
        "ppo.per_device_train_batch_size",
        "a batch of {ppo.prompts_per_batch} is more than the {data.prompts.known_train_rows} prompts left to train on",
        "lower it, or raise the number of prompts",
        _batch_above_prompts,
        about=tuple(f"data.prompts.{key}" for key in ("rows", "limit", "eval", "test")),
    ),
)


# ---------------------------------------------------------------- which weights can be trained


def _trains_all_weights(recipe: Sections, stage: str) -> bool:
    section: Sft | Reward | Ppo | None = getattr(recipe, stage)
    return section is not None and section.trains and section.lora is None


def _quantized_without_lora(stage: str) -> Broken:
    return lambda recipe: quantized(recipe) and _trains_all_weights(recipe, stage)


def _quantized_for_trl(recipe: Sections) -> bool:
    ppo = recipe.ppo
    return quantized(recipe) and ppo is not None and ppo.lora is not None and ppo.engine == "trl"


def _quantized_with_whole_critic(recipe: Sections) -> bool:
    ppo = recipe.ppo
    if ppo is None or ppo.lora is None or ppo.engine == "trl":
        return False
    return quantized(recipe) and ppo.critic == "model"


def _float16_without_lora(stage: str) -> Broken:
    return lambda recipe: recipe.model.dtype == "float16" and _trains_all_weights(recipe, stage)


def _float16_with_whole_critic(recipe: Sections) -> bool:
    ppo = recipe.ppo
    if ppo is None or ppo.lora is None:
        return False
    return recipe.model.dtype == "float16" and ppo.critic_kind == "model"


def _weights_where_nothing_rounds(recipe: Sections) -> bool:
    ppo = recipe.ppo
    if ppo is None or ppo.importance_cap is None or ppo.engine == "trl":
        return False
    return recipe.model.dtype == "float32" and not ppo.bf16 and not quantized(recipe)


def _lora_on_random_weights(stage: str, inherited: bool) -> Broken:
    """Tell whether the first stages that train have LoRA: without sft these are reward and ppo."""

    def broken(recipe: Sections) -> bool:
        section: Sft | Reward | Ppo | None = getattr(recipe, stage)
        if recipe.model.init is None or section is None or section.lora is None:
            return False
        is_first = stage == "sft" or recipe.sft is None
        return is_first and (section.lora is recipe.lora) == inherited

    return broken


FLOAT16_FAILS = "float16 weights cannot be trained: the squares of their gradients round to 0"
FLOAT16_FIX = "use dtype: bfloat16 or float32, or LoRA, whose adapters are float32"

QUANTIZED_PPO: tuple[Rule[Sections], ...] = (
    Rule(
        "ppo.engine",
        "trl holds critic and reward model whole, beside a quantized base",
        "use engine: rlhfctl, where all roles share that base",
        _quantized_for_trl,
        about=("model.quantization",),
    ),
    Rule(
        "ppo.critic",
        "model is a whole model to train, but the base is quantized",
        "use critic: adapter or head",
        _quantized_with_whole_critic,
        about=("model.quantization",),
    ),
)

FLOAT16_PPO: Rule[Sections] = Rule(
    "ppo.critic",
    f"is a whole model to train, but {FLOAT16_FAILS}",
    FLOAT16_FIX,
    _float16_with_whole_critic,
    about=("ppo.engine", "model.dtype"),
)


IMPORTANCE: Rule[Sections] = Rule(
    "ppo.importance_cap",
    "sampling and learning give the same probabilities in float32: every weight would be 1",
    "remove it",
    _weights_where_nothing_rounds,
    about=("model.dtype", "ppo.bf16", "model.quantization"),
)


def weight_rules(trained: Iterable[str]) -> tuple[Rule[Sections], ...]:
    """The rules about which weights can be trained. `trained`: the stages that have a key `lora`."""
    stages = tuple(trained)
    return (
        *(
            Rule[Sections](
                f"{stage}.lora",
                "is null, but the weights of a quantized base cannot be trained",
                "give the recipe a lora section, or take model.quantization out",
                _quantized_without_lora(stage),
                about=("lora", "model.quantization"),
            )
            for stage in stages
        ),
        *QUANTIZED_PPO,
        *(
            Rule[Sections](
                f"{stage}.lora",
                f"is null, but {FLOAT16_FAILS}",
                FLOAT16_FIX,
                _float16_without_lora(stage),
                about=("lora", "model.dtype"),
            )
            for stage in stages
        ),
        FLOAT16_PPO,
        IMPORTANCE,
        *(
            Rule[Sections](
                f"{stage}.lora",
                "the random weights of model.init stay as they are beneath the adapters, so LoRA learns nothing"
                f"{origin}",
                f"write `lora: null` under {stage}, which trains all weights"
                + ("" if stage == "sft" else ", or add an sft stage that does"),
                _lora_on_random_weights(stage, inherited=bool(origin)),
                about=("model.init", "sft", "lora"),
            )
            for stage in stages
            for origin in ("", " (inherited from the top-level lora)")
        ),
    )


# ---------------------------------------------------------------- lengths


def _too_long(length_key: str, with_prompt: bool) -> Broken:
    """Tell whether a response and a prompt (of one token if no maximum is set) are too long for a new model."""
    stage, _, key = length_key.partition(".")

    def broken(recipe: Sections) -> bool:
        init, section = recipe.model.init, getattr(recipe, stage)
        response = getattr(section, key) if section is not None else None
        prompt = recipe.data.max_prompt_length
        if init is None or response is None or (prompt is not None) != with_prompt:
            return False
        return bool(response + (prompt or 1) > init.max_position_embeddings)

    return broken


LENGTHS: tuple[Rule[Sections], ...] = tuple(
    Rule(
        key,
        f"{{{key}}} tokens beside {prompt} do not fit into {{model.init.max_position_embeddings}} positions",
        "lower it, or raise model.init.max_position_embeddings",
        _too_long(key, with_prompt),
        about=("model.init.max_position_embeddings", "data.max_prompt_length"),
    )
    for key in ("ppo.response_length", "compare.max_new_tokens")
    for prompt, with_prompt in (
        ("any prompt", False),
        ("a prompt of {data.max_prompt_length} (data.max_prompt_length)", True),
    )
)


# ---------------------------------------------------------------- the reward model's card


def _card_without_pairs(key: str) -> Broken:
    """Tell whether a ready scorer is to be examined on pairs that are not there; a trained one needs them anyway."""

    def broken(recipe: Sections) -> bool:
        reward = recipe.reward
        asked = reward is not None and not reward.needs_data and getattr(reward, key) is not None
        return asked and recipe.data.preferences is None

    return broken


def _card_of_prompts(key: str) -> Broken:
    return lambda recipe: classifies(recipe) and getattr(recipe.reward, key) is not None


CARDS: tuple[Rule[Sections], ...] = tuple(
    Rule[Sections](
        f"reward.{key}",
        "examines a scorer on pairs of responses, but a prompt is scored with labelled examples",
        f"remove {key}",
        _card_of_prompts(key),
        about=("reward.prompted_classifier",),
    )
    for key in ("card", "gate")
) + tuple(
    Rule(
        f"reward.{key}",
        "examines the scorer on pairs, but there are none",
        f"add data.preferences, or remove {key}",
        _card_without_pairs(key),
        about=("data.preferences",),
    )
    for key in ("card", "gate")
)


# ---------------------------------------------------------------- the reward's zero


def _no_demonstrations(recipe: Sections) -> bool:
    reward = recipe.reward
    return reward is not None and reward.normalize == "demonstrations" and recipe.data.demonstrations is None


NORMALIZE: Rule[Sections] = Rule(
    "reward.normalize",
    "demonstrations needs data.demonstrations, whose mean score becomes 0",
    "add data.demonstrations, or use normalize: reference",
    _no_demonstrations,
    about=("data.demonstrations",),
)


# ---------------------------------------------------------------- seeds


def _seeds_above_the_largest(recipe: Sections) -> bool:
    count = recipe.seeds.values if recipe.seeds is not None else 0
    return isinstance(count, int) and recipe.seed + count - 1 > LARGEST_SEED


SEEDS: Rule[Sections] = Rule(
    "seeds",
    f"counts up from `seed` ({{seed}}) to seeds above {LARGEST_SEED}, the largest",
    "lower one of the two, or list the seeds",
    _seeds_above_the_largest,
    about=("seed", "seeds.values"),
)


def rules_of(stages: Mapping[str, type[Stage]]) -> tuple[Rule[Sections], ...]:
    """All rules between the sections of a recipe whose stages are `stages`: their sections by key, in order."""
    trained = [name for name, section in stages.items() if "lora" in section.model_fields]
    between = (
        TWO_POLICIES,
        *CHOICE,
        *PPO_NEEDS,
        *weight_rules(trained),
        *LENGTHS,
        *CARDS,
        NORMALIZE,
        *OUTCOME_CRITIC,
        *PTX,
        PROMPT_SEARCH,
        *JUDGES,
        SEEDS,
        *LABELS,
        *PROCESSES,
        *ALGORITHMS,
    )
    return (*stage_rules(stages), *between)
