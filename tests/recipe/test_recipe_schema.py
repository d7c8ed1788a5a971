"""Rules of a recipe: for each one, a recipe that breaks it and the message that follows.

Longer than 400 lines because it is one table, which a test holds to the rules of all sections.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError
from sample_recipe import problems, recipe, sample_with_inherited_lora

from rlhfctl.errors import RecipeError
from rlhfctl.recipe.load import dump_recipe, load_recipe
from rlhfctl.recipe.schema import (
    OWN_ENGINE_KEYS,
    OWNED_TRAINER_KEYS,
    REFUSED_PPO_KEYS,
    Conflict,
    Ppo,
    Recipe,
    Rule,
    Section,
)
from rlhfctl.recipe.sections.algorithm import USED_BY, AlgorithmName, unused_keys
from rlhfctl.recipe.words import field_at, sections
from rlhfctl.tools.reference import PAGES

INIT: dict[str, Any] = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
DATA = {name: {"source": "builtin:reviews", "rows": 1200} for name in ("preferences", "prompts")}
TOKENS = "model.init={hidden_size: 8, num_hidden_layers: 1, num_attention_heads: 2, tokens: [a, b]}"


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").touch()


def endpoint(**changes: Any) -> str:
    """An override that adds the judge `endpoint`, with changes of its section."""
    section = {"base_url": "http://127.0.0.1:1/v1", "model": "m"} | changes
    return f"compare={{judges: [gold, endpoint], endpoint: {json.dumps(section)}}}"


LORA = "so LoRA learns nothing"
RULES = [
    # launch
    ("launch.num_processes=0", "launch.num_processes", "must be at least 1, got 0"),
    ("launch={num_machines: 2, main_process_ip: a}", "launch.num_processes", "shared equally among 2 machines"),
    ("launch.main_process_ip=10.0.0.1", "launch.main_process_ip", "launch.num_machines is 1"),
    ("launch.shard=true", "launch.shard", "one process has nobody to divide the weights with"),
    ("launch.accelerate_config=none.yaml", "launch.accelerate_config", "there is no file none.yaml"),
    # the choice of sft's checkpoint
    ("sft.choose={by: gold, every: 5}", "sft.choose.by", "there is no scorer 'gold' here"),
    ("sft.choose={by: 'http://a@b/score', every: 5}", "sft.choose.by", "host, port and path alone"),
    ("sft.choose={by: passes, every: 5}", "sft.choose.by", "passes needs reward.unit_tests"),
    ("sft.choose={by: heldout_loss, every: 5}", "sft.choose.by", "heldout_loss needs held-out demonstrations"),
    ("sft.trainer.eval_strategy=steps", "sft.trainer.eval_strategy", "the loss on held-out demonstrations"),
    ("sft.trainer.eval_steps=5", "sft.trainer.eval_steps", "the loss on held-out demonstrations"),
    ("sft.trainer.eval_on_start=true", "sft.trainer.eval_on_start", "the loss on held-out demonstrations"),
    # algorithms
    ("ppo={engine: rlhfctl, algorithm: trpo, bf16: true}", "ppo.bf16", "coarser than the KL that trpo bounds"),
    ("ppo={engine: rlhfctl, algorithm: trpo, critic: head}", "ppo.critic", "the policy out of trpo's trust region"),
    ("ppo={engine: rlhfctl, algorithm: nlpo, sampler: slots}", "ppo.sampler", "nlpo samples beside a masking policy"),
    # model
    ("model.init.hidden_size=130", "model.init.hidden_size", "130 cannot be shared among 4 attention heads"),
    ("model.init.hidden_size=132", "model.init.hidden_size", "132 in 4 attention heads is an odd number per head"),
    ("model.init.vocab_size=259", "model.init.vocab_size", "byte-level BPE needs at least 260, got 259"),
    ("model.init.tokens=[]", "model.init.tokens", "must not be empty"),
    ("model.init.tokens=[a, '', b]", "model.init.tokens", "a token is empty"),
    ("model.init.tokens=[a, b, a]", "model.init.tokens", "listed more than once: a"),
    ("model.init.architecture=lama", "model.init.architecture", "did you mean 'llama'?"),
    ("model.init=null", "model", "says nothing about the weights"),
    ("model.revision=main", "model.revision", "is for pretrained weights"),
    ("model.trust_remote_code=true", "model.trust_remote_code", "is for pretrained weights"),
    ("model.dtype=float64", "model.dtype", "expected float32, bfloat16 or float16"),
    # strict types and ranges
    ("name=a/b", "name", "must be letters, digits"),
    ("name=.a", "name", "must be letters, digits"),
    ("name=3", "name", "expected text, got the number 3"),
    ("seed=-1", "seed", "must be at least 0, got -1"),
    ("seed='3'", "seed", "expected a whole number, got the string '3'"),
    ("seed=1.0", "seed", "expected a whole number, got the number 1.0"),
    ("seed=true", "seed", "expected a whole number, got true"),
    # seeds
    ("seeds=1", "seeds.values", "at least 2 seeds are needed"),
    ("seeds=[4]", "seeds.values", "at least 2 seeds are needed"),
    ("seeds=[]", "seeds.values", "at least 2 seeds are needed"),
    ("seeds=[1, 2, 1]", "seeds.values", "a seed is listed more than once"),
    ("seeds=[0, -1]", "seeds.values[1]", "must be at least 0, got -1"),
    ("seeds=[0, 4294967296]", "seeds.values[1]", "must be at most 4294967295"),
    ("seeds=[0, '1']", "seeds.values[1]", "expected a whole number, got the string '1'"),
    ("seeds='0,1'", "seeds", "expected a whole number or a list or null, got the string"),
    # labels and rounds
    ("sample.responses=17", "sample.responses", "must be at most 16"),
    ("rounds=1", "rounds", "must be at least 2"),
    ("seeds={values: 3, form: ppo}", "seeds.form", "did you mean 'from'?"),
    ("ppo.kl_coef=true", "ppo.kl_coef", "expected a number, got true"),
    ("ppo.kl_coef=null", "ppo.kl_coef", "expected a number, got null"),
    ("ppo.learning_rate=.inf", "ppo.learning_rate", "should be a finite number"),
    ("ppo.learning_rate=0", "ppo.learning_rate", "must be greater than 0, got 0"),
    ("ppo.missing_eos_penalty=big", "ppo.missing_eos_penalty", "expected a number or null, got the string 'big'"),
    ("ppo.gamma=1.5", "ppo.gamma", "must be at most 1, got 1.5"),
    ("lora.lora_dropout=1", "lora.lora_dropout", "must be less than 1, got 1"),
    ("lora.layers_to_transform=[-1]", "lora.layers_to_transform[0]", "must be at least 0, got -1"),
    ("ppo.lora={layers_to_transform: [1], target_modules: 'q.*'}", "ppo.lora.layers_to_transform", "regular"),
    ("lora.target_modules=3", "lora.target_modules", "expected text or a list, got the number 3"),
    ("lora.target_modules=[a, 1]", "lora.target_modules[1]", "expected text, got the number 1"),
    ("compare.bootstrap_samples=99", "compare.bootstrap_samples", "must be at least 100, got 99"),
    ("report_to=wandb", "report_to", "expected a list, got the string 'wandb'"),
    ("data.prompts.limit=0", "data.prompts.limit", "must be greater than 0, got 0"),
    # unknown keys
    ("ppo.learning_rat=1", "ppo.learning_rat", "unknown key; did you mean 'learning_rate'?"),
    ("kl_coef=1", "kl_coef", "unknown key; it belongs under ppo"),
    ("ppo.seeds=1", "ppo.seeds", "unknown key"),
    ("ppo.dtype=float16", "ppo.dtype", "unknown key; it belongs under model"),
    ("compare.report_to=[]", "compare.report_to", "unknown key; it belongs at the top"),
    ("sft.learning_rate=1", "sft.learning_rate", "unknown key; trainer options go under sft.trainer"),
    ("reward.optim=x", "reward.optim", "unknown key; trainer options go under reward.trainer"),
    ("sft.checkpoint_step=1", "sft.checkpoint_step", "unknown key; did you mean 'checkpoint_steps'?"),
    ("sft.chat_template=x", "sft.chat_template", "unknown key; it belongs under model"),
    ("sft.save_steps=5", "sft.save_steps", "rlhfctl sets this itself"),
    # data
    ("data.prompts.source=builtin:films", "data.prompts.source", "there is no 'builtin:films'"),
    ("data.prompts.rows=null", "data.prompts.rows", "needs the number of rows"),
    ("data.prompts.columns={prompt: q}", "data.prompts.columns", "names columns of a file"),
    ("data.prompts.test=0", "data.prompts.test", "must be at least 1, got 0"),
    ("data.prompts.test=1100", "data.prompts.test", "eval (100) and test (1100) leave none of the 1200 prompts"),
    ("data.prompts.limit=400", "data.prompts.test", "leave none of the 400 prompts"),
    ("data.preferences.heldout=0", "data.preferences.heldout", "must be greater than 0"),
    ("data.preferences.label_noise=1.1", "data.preferences.label_noise", "must be at most 1"),
    ("data.preferences={source: rows.jsonl, label_noise: 0}", "data.preferences.label_noise", "is for the built-in"),
    ("data.preferences={source: rows.jsonl, rows: 5}", "data.preferences.rows", "but the source is a file"),
    # reward
    ("reward={model: a/b, lora: {}}", "reward.lora", "is for a reward model trained here"),
    ("reward={model: a/b, trainer: {x: 1}}", "reward.trainer", "is for a reward model trained here"),
    ("reward={model: a/b, checkpoint_steps: 1}", "reward.checkpoint_steps", "is for a reward model trained here"),
    ("reward.card={samples: 257}", "reward.card.samples", "must be at most 256, got 257"),
    ("reward.card={samples: 1}", "reward.card.samples", "must be at least 2, got 1"),
    ("reward.gate={min_accuracy: 2}", "reward.gate.min_accuracy", "must be at most 1, got 2"),
    ("reward.gate={flags: [length]}", "reward.gate.flags[0]", "did you mean 'length_only'?"),
    ("reward={model: a/b, heldout: true}", "reward.heldout", "is for a reward model trained here"),
    ("reward={model: a/b, function: 'm:f'}", "reward.function", "a response has one scorer"),
    ("reward={model: a/b, loss: k_wise}", "reward.loss", "is for a reward model trained here"),
    ("reward={model: a/b, label_error: 0.1}", "reward.label_error", "is for a reward model trained here"),
    ("reward={model: a/b, head_init: width}", "reward.head_init", "is for a reward model trained here"),
    ("reward={model: a/b, normalize: reference}", "reward.normalize", "is for a reward model trained here"),
    ("reward={model: a/b, members: 3}", "reward.members", "is for a reward model trained here"),
    ("reward={model: a/b, aggregate: min}", "reward.aggregate", "is for a reward model trained here"),
    ("reward={members: 3, lora: null}", "reward.members", "all weights are trained"),
    ("reward={aggregate: min}", "reward.aggregate", "but there is one"),
    ("reward={members: 3, variance_coefficient: 2.0}", "reward.variance_coefficient", "the aggregate is mean"),
    ("reward.members=0", "reward.members", "must be at least 1"),
    ("reward.loss=kwise", "reward.loss", "did you mean 'k_wise'?"),
    ("reward.label_error=1", "reward.label_error", "must be less than 1, got 1"),
    ("reward={loss: best_of_k, label_error: 0.1}", "reward.label_error", "but the loss best_of_k has no pairs"),
    ("reward={loss: plackett_luce, label_error: 0.1}", "reward.label_error", "the loss plackett_luce has no pairs"),
    # ppo
    ("ppo.gradient_accumulation_steps=2", "ppo.gradient_accumulation_steps", "(measured: 6 where 12 are due)"),
    ("ppo.num_mini_batches=3", "ppo.num_mini_batches", "a batch of 64 does not divide into 3 equal mini-batches"),
    ("ppo={whiten_rewards: true, num_mini_batches: 16}", "ppo.num_mini_batches", "mini-batches of at least 8, got 4"),
    ("ppo.stop_token=null", "ppo.missing_eos_penalty", "needs an end token to miss"),
    ("ppo={use: best, eval: {every: 0}}", "ppo.use", "ppo.eval.every is 0"),
    ("ppo.best_kl_limit=5", "ppo.best_kl_limit", "but ppo.use is last"),
    ("ppo={use: best, best_kl_limit: 0}", "ppo.best_kl_limit", "must be greater than 0, got 0"),
    ("ppo.per_device_train_batch_size=1024", "ppo.per_device_train_batch_size", "more than the 800 prompts left"),
    ("ppo.response_length=256", "ppo.response_length", "beside any prompt do not fit into 256 positions"),
    ("ppo.engine=tlr", "ppo.engine", "expected rlhfctl or trl, got the string 'tlr'; did you mean 'trl'?"),
    ("ppo.kl_estimator=k2", "ppo.kl_estimator", "TRL's PPOTrainer has k1 and k3"),
    ("ppo.stop_token=a", "ppo.stop_token", "TRL's PPOTrainer knows eos and null here"),
    ("ppo={engine: rlhfctl, critic: adapter, lora: null}", "ppo.critic", "an adapter needs LoRA, but all weights are"),
    ("ppo={engine: rlhfctl, importance_cap: 2}", "ppo.importance_cap", "every weight would be 1"),
    ("ppo={engine: rlhfctl, bf16: true, importance_cap: 0.5}", "ppo.importance_cap", "must be at least 1, got 0.5"),
    ("ppo={engine: rlhfctl, checkpointed_share: 0.5}", "ppo.checkpointed_share", "is for gradient_checkpointing"),
    ("ppo={engine: rlhfctl, sampler: vllm}", "ppo.sampler", "expected batch or slots"),
    ("ppo={engine: rlhfctl, critic_trains_trunk: false}", "ppo.critic_trains_trunk", "is for critic: head"),
    ("ppo={engine: rlhfctl, critic_from: a, critic: head}", "ppo.critic_from", "reads another policy's states"),
    ("ppo={engine: rlhfctl, missing_eos_score: -1.0}", "ppo.missing_eos_score", "is either lowered or replaced"),
    (
        "ppo={engine: rlhfctl, missing_eos_penalty: null, missing_eos_score: -1.0, stop_token: null}",
        "ppo.missing_eos_score", "needs an end token to miss",
    ),
    ("ppo={engine: rlhfctl, algorithm: rloo}", "ppo.num_generations", "rloo compares the responses to a prompt"),
    ("ppo={engine: rlhfctl, algorithm: grpo}", "ppo.num_generations", "grpo compares the responses to a prompt"),
    ("ppo={engine: rlhfctl, loss_type: dapo}", "ppo.loss_type", "ppo does not use it"),
    ("ppo={engine: rlhfctl, num_generations: 3}", "ppo.num_generations", "does not hold 3 responses to each prompt"),
    ("ppo={engine: rlhfctl, rewards: {reward: 1.0, gold: 0.5}}", "ppo.rewards", "there is no scorer 'gold'"),
    ("ppo={engine: rlhfctl, rewards: {'http://me:k@a': 1.0}}", "ppo.rewards", "keys never stand in a recipe"),
    ("ppo={engine: rlhfctl, rewards: {reward: 1.0, 'bertscore@': 0.5}}", "ppo.rewards", "no scorer 'bertscore@'"),
    ("ppo={engine: rlhfctl, rewards: {}}", "ppo.rewards", "must not be empty"),
    ("ppo={engine: rlhfctl, top_p: 0}", "ppo.top_p", "must be greater than 0, got 0"),
    ("ppo={engine: rlhfctl, critic: adaptor}", "ppo.critic", "did you mean 'adapter'?"),
    # compare
    ("compare.judges=[gold, me]", "compare.judges", "there is no judge 'me'"),
    ("compare.judges=[gold, 'http://a/b?c']", "compare.judges", "an address of a server is host, port and path"),
    ("compare.metrics=[rouge3]", "compare.metrics", "there is no metric 'rouge3'"),
    ("compare.metrics=[gold]", "compare.metrics", "there is no metric 'gold'"),
    ("compare.metrics=[perplexity]", "compare.metrics", "there is no metric 'perplexity'"),
    ("compare.metrics=[bleu, bleu]", "compare.metrics", "a metric is listed more than once"),
    ("compare.metrics=['http://a@b']", "compare.metrics", "an address of a server is host, port and path alone"),
    ("compare.judges=[gold, 'perplexity@a/b']", "compare.judges", "there is no judge 'perplexity@a/b'"),
    ("compare.judges=[gold, gold]", "compare.judges", "a judge is listed more than once"),
    ("compare.judges=[]", "compare.judges", "must not be empty"),
    ("compare.primary_judge=m:f", "compare.primary_judge", "'m:f' is not among the judges: gold, reward_model"),
    ("compare.judges=[gold, reward_function]", "compare.judges", "reward_function needs reward.function"),
    ("compare.judges=[gold, unit_tests]", "compare.judges", "unit_tests needs reward.unit_tests"),
    ("compare.judges=[gold, passes]", "compare.judges", "passes needs reward.unit_tests"),
    ("compare.judges=[gold, endpoint]", "compare.judges", "endpoint needs compare.endpoint: the address and the model"),
    ("compare.endpoint={base_url: 'http://a', model: m}", "compare.endpoint", "is not used: endpoint is not among the"),
    (endpoint(samples=9), "compare.endpoint.samples", "is more than the 4 of compare.samples_per_prompt"),
    (endpoint(base_url="ftp://a"), "compare.endpoint.base_url", "is no address of a server"),
    (endpoint(base_url="http://a:b/v1"), "compare.endpoint.base_url", "is no address of a server"),
    (endpoint(base_url="https://me:k@a/v1"), "compare.endpoint.base_url", "holds more than host, port and path"),
    (endpoint(base_url="https://a/v1?api-key=k"), "compare.endpoint.base_url", "keys never stand in a recipe"),
    (endpoint(key_env="gsk_Abc123"), "compare.endpoint.key_env", "is no name of an environment variable in capitals"),
    (endpoint(api_key="sk-abc"), "compare.endpoint.api_key", "keys never stand in a recipe"),
    (endpoint(max_cost=2), "compare.endpoint.max_cost", "cannot be watched without prices"),
    (endpoint(price_per_million_input=2), "compare.endpoint.price_per_million_output", "the two prices belong"),
    (endpoint(max_failed=2), "compare.endpoint.max_failed", "must be at most 1, got 2"),
    ("compare.judges=[gold, heldout]", "compare.judges", "heldout needs reward.heldout: true"),
    ("compare.max_new_tokens=256", "compare.max_new_tokens", "do not fit into 256 positions"),
    # between sections
    ("data.demonstrations=null", "sft", "needs data.demonstrations to train on"),
    ("data.preferences=null", "reward", "needs data.preferences to train on"),
    ("sft.lora={}", "sft.lora", LORA),
]  # fmt: skip


@pytest.mark.parametrize(("override", "key", "what"), RULES)
def test_rule(override: str, key: str, what: str) -> None:
    found = problems(override)
    assert [problem.key for problem in found] == [key]
    assert what in found[0].what
    assert found[0].where is not None


# A value for each key that only our own engine has, and that it takes.
OWN: dict[str, str] = {
    "algorithm": "ppo",
    "critic": "head",
    "critic_from": "runs/a/ppo",
    "critic_trains_trunk": "true",
    "outcome_critic": "{}",
    "rewards": "{reward: 1.0, 'scores:length': 0.5}",
    "num_generations": "4",
    "top_k": "20",
    "top_p": "0.9",
    "stop_strings": "[END]",
    "missing_eos_score": "-1.0",
    "whiten_advantages": "false",
    "entropy_coef": "0.01",
    "target_kl": "0.1",
    "max_grad_norm": "null",
    "bf16": "true",
    "gradient_checkpointing": "true",
    "checkpoint_steps": "5",
    "keep_checkpoints": "1",
    "trace_every": "0",
    "trace_episodes": "2",
    "sampler": "slots",
    "importance_cap": "2.0",
    "checkpointed_share": "1.0",
    "ptx": "{coef: 1.0}",
    "kl_target": "6.0",
    "kl_horizon": "5000",
    "ema_decay": "0.992",
    "normalize_scores": "running",
    "score_clip": "[-5.0, 5.0]",
    "critic_learning_rate": "1e-5",
    "critic_warmup_steps": "3",
    "policy_starts_after": "2",
    "lam_value": "1.0",
}
OWN_BESIDE_OURS = {"kl_horizon": ["ppo.kl_target=6.0"]}  # a key that TRL's engine refuses for itself
OWN_BESIDE = {
    "missing_eos_score": ["ppo.missing_eos_penalty=null"],
    "importance_cap": ["model.dtype=bfloat16"],
    "outcome_critic": ["reward={unit_tests: {}}", "compare={judges: [gold], primary_judge: null}"],
}

UNIT_TESTS = [
    ("{program: 'x = 1'}", "reward.unit_tests.program", "holds no {response}"),
    ("{memory_mb: 8}", "reward.unit_tests.memory_mb", "must be at least 64, got 8"),
    ("{outcomes: {pass: 2}}", "reward.unit_tests.outcomes.pass", "did you mean 'passed'?"),
    ("{}, function: 'm:f'", "reward.unit_tests", "but reward.function names another"),
    ("{}, retries: 1", "reward.retries", "the reward is unit_tests"),
    ("{}, members: 3", "reward.members", "is for a reward model trained here"),
]


@pytest.mark.parametrize(("section", "key", "what"), UNIT_TESTS)
def test_rules_of_unit_tests(section: str, key: str, what: str) -> None:
    (problem,) = problems(f"reward={{unit_tests: {section}}}", "compare.judges=[gold, unit_tests, passes]")
    assert problem.key == key and what in str(problem)


WORDS = "verbalizers: {a: good, b: bad}"
PROMPTED = [
    (f"{WORDS}, template: '{{text}} {{mask}}'", "reward.prompted_classifier.template", "once each"),
    (f"{WORDS}, template: '{{text}} {{prompt}} {{prompt}} {{mask}}'", "reward.prompted_classifier.template", "once"),
    ("verbalizers: {a: good}", "reward.prompted_classifier.verbalizers", "at least two labels"),
    ("verbalizers: {a: good, b: ' good'}", "reward.prompted_classifier.verbalizers", "for several labels: good"),
    (f"{WORDS}, shots: 0", "reward.prompted_classifier.shots", "must be greater than 0"),
    ("{}", "reward.prompted_classifier.verbalizers", "missing"),
    (f"{WORDS}}}, retries: 1, server: {{", "reward.retries", "the reward is prompted_classifier"),
    (f"{WORDS}}}, function: 'm:f', server: {{", "reward.prompted_classifier", "but reward.function names another"),
    (f"{WORDS}}}, card: {{", "reward.card", "but a prompt is scored with labelled examples"),
]


@pytest.mark.parametrize(("section", "key", "what"), PROMPTED)
def test_rules_of_a_prompted_classifier(section: str, key: str, what: str) -> None:
    inside = section if section == "{}" else f"{{{section}}}"
    judges = "compare={judges: [correct, prompted_classifier, 'http://a'], primary_judge: null}"
    found = problems(f"reward={{prompted_classifier: {inside}}}", judges, "ppo.engine=rlhfctl")
    assert key in [problem.key for problem in found]
    assert what in next(str(problem) for problem in found if problem.key == key)


def test_zscores_need_several_responses_to_one_prompt() -> None:
    base = (f"reward={{prompted_classifier: {{{WORDS}}}}}", "compare={judges: [correct], primary_judge: null}")
    (problem,) = problems(*base, "ppo.engine=rlhfctl")
    assert problem.key == "reward.prompted_classifier.zscore" and "every score would be 0" in problem.what
    for way in ("data.prompts.fixed_prompt=a", "ppo.num_generations=2", "reward.prompted_classifier.zscore=false"):
        assert recipe(*base, "ppo.engine=rlhfctl", way).reward is not None


def test_a_resolved_recipe_with_a_prompted_classifier_can_be_read_again(tmp_path: Path) -> None:
    made = recipe(
        f"reward={{prompted_classifier: {{{WORDS}, shots: 3}}}}",
        "compare={judges: [correct], primary_judge: null, prompt_search: {random: 5}}",
        "ppo.engine=rlhfctl",
        "data.prompts={source: 'builtin:sentiment', fixed_prompt: 'words:'}",
    )
    (tmp_path / "again.yaml").write_text(dump_recipe(made), encoding="utf-8")
    assert load_recipe(tmp_path / "again.yaml").recipe == made


# Keys that CodeRL's returns have no use for.
BESIDE_OUTCOMES = {
    "critic": "model", "critic_from": "x", "critic_trains_trunk": "true", "whiten_rewards": "true",
    "whiten_advantages": "true", "vf_coef": "0.1", "cliprange_value": "0.2", "gamma": "1.0", "lam": "0.9",
    "critic_learning_rate": "1e-5", "critic_warmup_steps": "3", "policy_starts_after": "2", "lam_value": "1.0",
    "normalize_scores": "running", "score_clip": "2.0",
    "scale_rewards": "none", "loss_type": "dapo", "trpo": "{max_kl: 0.1}", "nlpo": "{top_mask: 0.5}",
}  # fmt: skip


@pytest.mark.parametrize("key", BESIDE_OUTCOMES)
def test_what_outcome_critic_has_no_use_for_is_refused(key: str) -> None:
    found = problems(
        "reward={unit_tests: {}}",
        "compare={judges: [passes]}",
        f"ppo={{outcome_critic: {{}}, {key}: {BESIDE_OUTCOMES[key]}}}",
    )
    assert any(
        problem.key == f"ppo.{key}" and "has no part in the returns of outcome_critic" in str(problem)
        for problem in found
    )


def test_a_resolved_recipe_with_outcome_critic_can_be_read_again(tmp_path: Path) -> None:
    made = recipe(
        "reward={unit_tests: {}}",
        "compare={judges: [passes], primary_judge: null, critic_sampling: {}}",
        "ppo={engine: rlhfctl, outcome_critic: {}}",
    )
    (tmp_path / "again.yaml").write_text(dump_recipe(made), encoding="utf-8")
    assert load_recipe(tmp_path / "again.yaml").recipe == made


# A value for each key that some algorithms do not use.
NOT_BY_ALL = BESIDE_OUTCOMES | {"cliprange": "0.2", "num_ppo_epochs": "2", "num_mini_batches": "2", "target_kl": "0.1"}
NOT_BY_ALL |= {"top_k": "5", "top_p": "0.9"}
NOT_BY_ALL |= {"kl_estimator": "k1", "kl_target": "6.0", "kl_horizon": "5000", "ptx": "{coef: 1.0}"}
IN_VAIN = [(name, key) for name in get_args(AlgorithmName) for key in unused_keys(name)]


def test_every_key_that_some_algorithms_do_not_use_has_a_value_here() -> None:
    assert set(NOT_BY_ALL) == set(USED_BY) <= set(Ppo.model_fields)


@pytest.mark.parametrize(("algorithm", "key"), IN_VAIN)
def test_a_key_that_the_algorithm_does_not_use_is_refused(algorithm: str, key: str) -> None:
    found = problems(f"ppo={{engine: rlhfctl, algorithm: {algorithm}, num_generations: 2, {key}: {NOT_BY_ALL[key]}}}")
    assert [problem.key for problem in found] == [f"ppo.{key}"]
    assert f"{algorithm} does not use it" in found[0].what and "use ppo.algorithm: " in str(found[0].fix)


@pytest.mark.parametrize("algorithm", get_args(AlgorithmName))
def test_a_resolved_recipe_has_only_the_keys_that_its_algorithm_uses(algorithm: str, tmp_path: Path) -> None:
    made = recipe(f"ppo={{engine: rlhfctl, algorithm: {algorithm}, num_generations: 2}}")
    assert made.ppo is not None
    kept = made.ppo.model_dump(mode="json")
    assert not kept.keys() & set(unused_keys(algorithm)) and ("algorithm" in kept) is (algorithm != "ppo")
    (tmp_path / "again.yaml").write_text(dump_recipe(made), encoding="utf-8")
    assert load_recipe(tmp_path / "again.yaml").recipe == made


@pytest.mark.parametrize("algorithm", [name for name in get_args(AlgorithmName) if name != "ppo"])
def test_outcome_critic_needs_ppo(algorithm: str) -> None:
    unit_tests = ("reward={unit_tests: {}}", "compare={judges: [passes], primary_judge: null}")
    found = problems(
        *unit_tests, f"ppo={{engine: rlhfctl, algorithm: {algorithm}, num_generations: 2, outcome_critic: {{}}}}"
    )
    assert [problem.key for problem in found] == ["ppo.outcome_critic"]
    assert f"not of {algorithm}" in found[0].what


# Further recipes that break a rule, several at once.
MADE = "data.preferences={source: 'stage:label'}"
MORE = [
    ("sft.choose={by: heldout_loss, every: 5, temperature: 1.0}", "data.demonstrations.heldout=0.1"),
    ("sft.choose={by: heldout_loss, every: 5, max_new_tokens: 9}", "data.demonstrations.heldout=0.1"),
    ("sft.choose={by: heldout_loss, every: 5, batch_size: 9}", "data.demonstrations.heldout=0.1"),
    ("sft.choose={by: 'a:b', every: 5}", "data.prompts.eval=0"),
    ("sft.choose={by: 'a:b'}", "sft.trainer.num_train_epochs=1"),
    ("label={}", MADE),
    ("label={}", "sample={}"),
    ("label={by: builtin}", "sample={}", MADE, "data.prompts={source: rows.jsonl, rows: null}", "compare=null"),
    ("label={by: nobody}", "sample={}", MADE),
    (
        "label={by: builtin, overlap: 0.2, annotators: 3, order: random, enough: 0.5, combine: majority}",
        "sample={}",
        MADE,
    ),
    ("label={by: 'a:b', noise: 0.3}", "sample={}", MADE),
    ("sample={models: [base, base]}",),
    ("label={by: endpoint}", "sample={}", MADE),
    ("label={endpoint: {base_url: 'http://127.0.0.1:1/v1', model: m}}", "sample={}", MADE),
    ("rounds=2",),
    ("sample={}", "data.prompts=null", "ppo=null", "compare=null"),
    ("rounds={count: 2, labels: [1]}", "sample={}", "label={}", MADE),
    ("rounds=9", "sample={prompts: 5}", "label={}", MADE),
    ("rounds=2", "sample={}", "label={}", MADE, "ppo.engine=trl"),
    ("launch={num_processes: 4}", "sft.trainer={per_device_train_batch_size: 3}", "ppo.num_mini_batches=32"),
    ("launch={num_processes: 9}", "reward={}", "ppo.engine=trl"),
    ("launch={num_processes: 4, num_machines: 3}",),
    ("launch={num_machines: 2}",),
    ("launch={shard: true}",),
    ("launch={num_processes: 2, shard: true}", "ppo={outcome_critic: {}}"),
    ("launch={num_processes: 2, shard: true}", "ppo={engine: rlhfctl, algorithm: trpo}"),
    ("launch={num_processes: 2, shard: true}", "ppo={engine: rlhfctl, algorithm: nlpo}"),
    ("model={path: a/b, quantization: 4bit, init: null}", "ppo={engine: rlhfctl, algorithm: trpo}", "lora={}"),
    ("model={path: a/b, dtype: bfloat16, init: null}", "ppo={engine: rlhfctl, algorithm: trpo}"),
    ("launch={num_processes: 2, shard: true, accelerate_config: none.yaml}",),
    ("launch={num_processes: 2, shard: true}", "model.quantization=4bit", "model.path=a/b", "model.init=null"),
    ("rounds=2", "sample={}", "label={}", MADE, "seeds={values: 2, from: ppo}"),
    ("model.path=a/b", "model.attn_implementation=flash_attention_2", "model.template_date=never", "model.init=null"),
    ("model.quantization=4bit", "model.path=a/b", f"{TOKENS.removesuffix('}')}, vocab_size: 300}}"),
    ("reward={retries: 2, label: a, reads: pair, trainer: {seed: 1}}",),
    ("reward.function=no function",),
    ("reward={unit_tests: {program: x}, retries: 1, function: 'a:b'}",),
    ("reward={unit_tests: {}, retries: 1}", "ppo={engine: rlhfctl, critic: reward}"),
    ("reward={prompted_classifier: {verbalizers: {a: good}, template: x}, retries: 1, function: 'a:b'}",),
    (
        f"reward={{prompted_classifier: {{{WORDS}}}, retries: 1, card: {{}}, gate: {{}}}}",
        "ppo={engine: trl, critic: reward}",
        "launch={num_processes: 2, shard: true}",
        "compare={judges: [gold], prompt_search: {random: 0, greedy: false}}",
    ),
    ("reward={prompted_classifier: {verbalizers: {a: good, b: good}}}", "ppo={engine: rlhfctl, critic: reward}"),
    ("compare={judges: [gold, correct, prompted_classifier], prompt_search: {}}",),
    ("data.preferences={source: 'builtin:sentiment', rows: 10}",),
    ("ppo.outcome_critic={}",),
    ("data.preferences={source: 'builtin:programs', rows: 10}",),
    ("ppo.outcome_critic={}", "model={path: a/b, quantization: 4bit, init: null}"),
    ("compare={judges: [gold], critic_sampling: {samples: 3}}",),
    *(("ppo.outcome_critic={}", f"ppo.{key}={value}") for key, value in BESIDE_OUTCOMES.items()),
    ("reward={unit_tests: {}}", "ppo={engine: rlhfctl, algorithm: a2c, outcome_critic: {}}"),
    *((f"ppo.algorithm={algorithm}", f"ppo.{key}={NOT_BY_ALL[key]}") for algorithm, key in IN_VAIN),
    ("reward={function: 'a:b', label: a, reads: pair}", "ppo={engine: rlhfctl, critic: reward}"),
    ("reward={function: 'http://a/b', retries: 2}",),
    ("reward={function: 'https://a/b?key=sk'}",),
    ("reward={function: 'm:f', server: {}}",),
    ("reward={function: 'http://a', server: {key_env: rk-1}}",),
    ("reward={model: a/b, card: {}, gate: {}}", "data.preferences=null"),
    ("reward={model: a/b, variance_coefficient: 2.0}",),
    ("sample={candidates: 10}", "label={}", MADE),
    ("reward={normalize: demonstrations}", "sft=null", "data.demonstrations=null"),
    ("seed=4294967294", "seeds=3"),
    ("sft=null", "reward=null", "ppo=null", "compare=null"),
    ("sft=null", "data.demonstrations=null", "data.prompts=null"),
    ("reward=null", "lora={}", "sft=null"),
    ("data.prompts.eval=0", "ppo.use=best"),
    ("model={path: a/b, quantization: 4bit, init: null}", "lora=null", "reward={}", "ppo.lora=null"),
    ("model={path: a/b, quantization: 4bit, init: null}", "lora={}", "ppo.engine=trl"),
    ("model={path: a/b, quantization: 4bit, init: null}", "lora={}", "ppo={engine: rlhfctl, critic: model}"),
    ("model={path: a/b, dtype: float16, init: null}", "lora=null"),
    ("model={path: a/b, dtype: float16, init: null}", "lora={}", "ppo={engine: rlhfctl, critic: model}"),
    ("sft=null", "reward.lora={}", "ppo.lora={}"),
    ("sft=null", "lora={}"),
    ("data.max_prompt_length=250", "compare.max_new_tokens=20"),
    ("ppo.stop_token='off'",),
    ("data.prompts={source: rows.jsonl, rows: null}",),
    ("reward={function: 'a:b'}", "data.prompts={source: rows.jsonl, as_conversations: true, turns: {}}"),
    (
        "data.prompts={sources: [{source: rows.jsonl}], source: rows.jsonl, subset: a, split: a, revision: a, "
        "limit: 3, rows: 3}",
    ),
    ("data.preferences={sources: [{source: rows.jsonl}], label_noise: 0.2}",),
    ("data.prompts={source: ''}",),
    (
        "data.preferences={source: 'builtin:reviews', rows: 9, label: {tie: a}, subset: a, split: a, revision: a, "
        "turns: {}, as_conversations: true, response_prefix: a, bad_rows: drop, deduplicate: true, max_chars: 3}",
    ),
    ("compare.controls={temperatures: [0.1, 0.1, 3.0], best_of_n: 1, samples_per_prompt: 9}",),
    *((f"ppo.{key}={value}", "ppo.engine=trl") for key, value in OWN.items()),
    ("ppo.kl_estimator=exact", "ppo.engine=trl"),
    ("ppo={engine: rlhfctl, kl_estimator: exact, top_k: 5}",),
    ("ppo={engine: rlhfctl, kl_target: 6.0, kl_coef: 0.0}",),
    ("ppo={engine: rlhfctl, kl_horizon: 500}",),
    ("ppo={engine: rlhfctl, kl_target: 6.0, kl_horizon: 2}",),
    ("ppo={engine: rlhfctl, policy_starts_after: 1000}",),
    ("ppo={engine: rlhfctl, score_clip: [1.0, -1.0]}",),
    ("ppo={engine: rlhfctl, ptx: {data: pretraining}}",),
    ("data.pretraining={source: rows.jsonl}",),
    ("dpo={trainer: {beta: 0.2, truncation_mode: keep_end, sync_ref_model: true}}",),
    ("ppo=null", "dpo={}", "data.preferences=null", "reward=null"),
    ("ppo=null", "dpo={}", "launch={num_processes: 2, shard: true}"),
    ("model={path: a/b, quantization: 4bit, init: null}", "lora={}", "ppo=null", "dpo={lora: null}"),
    ("model={path: a/b, dtype: float16, init: null}", "lora={}", "ppo=null", "dpo={lora: null}"),
    ("sft=null", "ppo=null", "dpo.lora={}"),
    ("sft=null", "lora={}", "ppo=null", "dpo={}"),
]


def test_every_rule_is_broken_by_a_recipe_here(monkeypatch: pytest.MonkeyPatch) -> None:
    broken: set[Rule[Any]] = set()
    apply = Rule.conflicts

    def noted(rule: Rule[Any], section: Section, at: str) -> Iterator[Conflict]:
        for conflict in apply(rule, section, at):
            broken.add(rule)
            yield conflict

    monkeypatch.setattr(Rule, "conflicts", noted)
    for overrides in [*((override,) for override, _, _ in RULES), *MORE]:
        assert problems(*overrides)
    with pytest.raises(RecipeError):
        load_recipe(sample_with_inherited_lora())
    kinds = {kind for section, _ in PAGES.values() for kind in section.__mro__}
    written = [rule for kind in kinds for rule in vars(kind).get("RULES", ())]
    assert len(written) > 80
    assert [(rule.key, rule.what) for rule in written if rule not in broken] == []


@pytest.mark.parametrize("key", [*OWNED_TRAINER_KEYS, "hub_model_id", "hub_token"])
@pytest.mark.parametrize("stage", ["sft", "reward"])
def test_owned_trainer_keys_are_refused_naming_the_way(stage: str, key: str) -> None:
    (problem,) = problems(f"{stage}.trainer.{key}=x")
    assert (problem.key, problem.what) == (f"{stage}.trainer.{key}", "rlhfctl sets this itself")
    assert problem.fix


def test_other_trainer_keys_pass() -> None:
    sft = recipe("sft.trainer.max_length=64").sft
    assert sft is not None and sft.trainer["max_length"] == 64


@pytest.mark.parametrize("key", REFUSED_PPO_KEYS)
def test_keys_of_ppo_config_that_do_nothing(key: str) -> None:
    (problem,) = problems(f"ppo.{key}=1")
    assert (problem.what, problem.fix) == REFUSED_PPO_KEYS[key]


def test_new_vocabulary_of_whole_tokens() -> None:
    new = recipe(TOKENS, "sft=null", "lora=null", "data.demonstrations=null")
    assert new.model.init is not None and new.model.init.tokens == ["a", "b"]
    with pytest.raises(ValidationError, match="the list of tokens fixes it"):
        Recipe.model_validate({"name": "x", "model": {"init": {**INIT, "tokens": ["a"], "vocab_size": 300}}})


def test_every_key_of_our_own_engine_has_a_value_here() -> None:
    assert set(OWN) == set(OWN_ENGINE_KEYS)


@pytest.mark.parametrize("key", OWN_ENGINE_KEYS)
def test_keys_of_our_own_engine_are_refused_with_the_other_and_taken_by_it(key: str) -> None:
    override, beside = f"ppo.{key}={OWN[key]}", OWN_BESIDE.get(key, [])
    (problem,) = problems(override, *beside, "ppo.engine=trl")
    assert problem.key == f"ppo.{key}" and "TRL's PPOTrainer" in problem.what
    assert problem.fix is not None and "engine: rlhfctl" in problem.fix
    section = recipe(override, *beside, *OWN_BESIDE_OURS.get(key, []), "ppo.engine=rlhfctl").ppo
    assert section is not None and key in section.model_fields_set


@pytest.mark.parametrize(
    "override",
    ["ppo.kl_estimator=k2", "ppo.kl_estimator=exact", "ppo.stop_token=a", "ppo.gradient_accumulation_steps=2"],
)
def test_what_the_other_engine_gets_wrong_is_taken_by_ours(override: str) -> None:
    (problem,) = problems(override)
    assert problem.fix is not None and "engine: rlhfctl" in problem.fix
    assert recipe(override, "ppo.engine=rlhfctl").ppo is not None


def test_our_own_engine_is_the_default_and_its_critic_follows_lora() -> None:
    section = Recipe.model_validate({"name": "x", "model": {"path": "a"}, "data": DATA, "reward": {}, "ppo": {}}).ppo
    assert section is not None and (section.engine, section.critic, section.critic_kind) == ("rlhfctl", None, "model")
    ours = recipe("ppo.engine=rlhfctl").ppo
    assert ours is not None and ours.lora is not None and ours.critic_kind == "adapter"
    trl = recipe().ppo
    assert trl is not None and trl.lora is not None and trl.critic_kind == "model"
    whole = recipe("ppo={engine: rlhfctl, lora: null, critic: head, critic_trains_trunk: false}").ppo
    assert whole is not None and whole.critic_kind == "head"
    assert recipe("ppo={engine: rlhfctl, stop_token: null, stop_strings: [END], missing_eos_penalty: 1.0}").ppo
    assert recipe("ppo={engine: rlhfctl, gradient_accumulation_steps: 2}").ppo.batch_size == 128  # type: ignore[union-attr]
    uneven = recipe("ppo={engine: rlhfctl, total_episodes: 100, per_device_train_batch_size: 32}").ppo
    assert uneven is not None and uneven.updates == 4


def test_no_message_about_the_endpoint_shows_what_may_be_a_key() -> None:
    wrong: list[dict[str, Any]] = [{"key_env": "gsk_SECRET9x"}, {"base_url": "https://me:SECRET9x@a/v1"}]
    for change in [*wrong, {"base_url": "https://a/v1?api-key=SECRET9x"}, {"api_key": "SECRET9x"}]:
        (problem,) = problems(endpoint(**change))
        assert "SECRET9x" not in f"{problem.what} {problem.fix}", change


def test_the_endpoint_reads_back_and_is_absent_from_recipes_without_it() -> None:
    asked = recipe(endpoint(samples=2, key_env=None, criteria="Shorter."))
    Path("resolved.yaml").write_text(dump_recipe(asked), encoding="utf-8")
    assert load_recipe("resolved.yaml").recipe.model_dump() == asked.model_dump()
    assert asked.compare is not None and asked.compare.endpoint is not None
    assert (asked.compare.endpoint.samples, asked.compare.endpoint.key_env) == (2, None)
    assert "endpoint" not in dump_recipe(recipe())


def test_questions_to_the_endpoint_are_counted() -> None:
    """Two for each pair; of the controls only where the verdict goes by it."""

    def count(judges: str, **changes: Any) -> int:
        section = json.dumps({"base_url": "http://a/v1", "model": "m", "samples": 3})
        more = json.dumps(changes)[1:-1]
        compare = recipe(f"compare={{judges: {judges}, primary_judge: null, endpoint: {section}, {more}}}").compare
        assert compare is not None
        return compare.questions_per_prompt

    assert count("[gold, endpoint]") == 2 * 3
    # main 3; both at 0.8, 0.6: 2 each, greedy 1; matched 2; the reference at 0.8, 0.6: 2 each, greedy 1; best of n 3
    assert count("[endpoint, gold]") == 2 * (3 + 2 + 2 + 1 + 2 + 2 + 2 + 1 + 3)
    assert count("[endpoint]", controls="none") == 2 * 3
    few = {"temperatures": [0.5], "matched_entropy": False, "best_of_n": 0, "samples_per_prompt": 1}
    assert count("[endpoint]", controls=few) == 2 * (3 + 1 + 1)
    whole = recipe().compare
    assert whole is not None and whole.questions_per_prompt == 0


APART = ("critic_from", "outcome_critic")  # they do without other keys


@pytest.mark.parametrize("engine", ["trl", "rlhfctl"])
def test_a_resolved_recipe_reads_back_as_it_was(engine: str) -> None:
    overrides = [f"ppo.engine={engine}", "reward.card={samples: 8}", "reward.gate={flags: []}"]
    if engine == "rlhfctl":
        overrides += [f"ppo.{key}={value}" for key, value in OWN.items() if key not in APART]
        overrides += OWN_BESIDE["missing_eos_score"]
    resolved = recipe(*overrides)
    text = dump_recipe(resolved)
    Path("resolved.yaml").write_text(text, encoding="utf-8")
    again = load_recipe("resolved.yaml").recipe
    assert again.model_dump() == resolved.model_dump() and dump_recipe(again) == text
    assert resolved.ppo is not None and again.ppo is not None and again.ppo.engine == engine
    assert ("trace_every" in text) is (engine == "rlhfctl")
    assert all(getattr(again.ppo, key) == getattr(resolved.ppo, key) for key in OWN)


def test_what_is_inherited_and_resolved() -> None:
    other = recipe("reward.lora.r=2", "ppo.lora=null", "compare={primary_judge: null, judges: [reward_model, gold]}")
    assert other.reward is not None and other.reward.lora is not None and other.reward.lora.r == 2
    assert other.ppo is not None and other.ppo.lora is None
    assert other.compare is not None and other.compare.primary_judge == "reward_model"
    alone = recipe("sft=null", "reward.model=a/b", "ppo=null", "lora={}")
    assert alone.reward is not None and alone.reward.lora is None
    assert alone.compare is not None and alone.compare.max_new_tokens == 53
    assert recipe("compare=null").compare is None


def test_recipes_made_in_python_are_held_to_the_same_rules() -> None:
    with pytest.raises(ValidationError, match="ppo: needs something that scores responses; add a reward section"):
        Recipe.model_validate({"name": "x", "model": {"path": "a"}, "ppo": {}})
    with pytest.raises(ValidationError, match="frozen"):
        recipe().seed = 1  # type: ignore[misc]


def test_every_key_is_described_in_one_sentence() -> None:
    count = 0
    for section, names in sections():
        for name in names:
            if (section, name) == ("", "extends"):
                continue
            info = field_at((*(section.split(".") if section else ()), name))
            assert info is not None and info.description and info.description.endswith("."), (section, name)
            assert "\n" not in info.description
            count += 1
    assert count > 100


def test_json_schema_refuses_unknown_keys_everywhere() -> None:
    schema = Recipe.model_json_schema()
    assert schema["additionalProperties"] is False
    assert all(part["additionalProperties"] is False for part in schema["$defs"].values())
