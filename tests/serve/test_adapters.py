"""Low-rank adapters in one engine: each answers as its merged model does alone, whatever else is in the batch and in the cache."""

import asyncio
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from fmray.cli import app
from fmray.core.artifact import load
from fmray.core.config import load_config
from fmray.core.errors import ArtifactError, ConfigError, FmrayError
from fmray.model.adapter import ADAPTER, CONFIG, WEIGHTS, read_adapter, require_fit
from fmray.model.checkpoint import Checkpoint
from fmray.serve import manifest
from fmray.serve.admission import admit
from fmray.serve.deployment import DeployConfig
from fmray.serve.engine import Chat, Sampling
from fmray.serve.engines.continuous import ContinuousBatching
from fmray.serve.foreground import bases_of
from fmray.serve.specs import specs_of
from tests.serve.conftest import MAX_LEN
from tests.serve.lora import SHAPES, family, make_adapter, tuned
from tests.serve.test_continuous import make

WHO = (None, *SHAPES)
DRAW = random.Random(0)
# Some longer than a page of the cache, which could be shared by its tokens.
PROMPTS = [[0, *(DRAW.randrange(3, 320) for _ in range(length))] for length in (2, 40, 9, 70)]


@pytest.fixture(scope="module")
def root(experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return family(tmp_path_factory.mktemp("family"), load(experiment / "base", Checkpoint))


@pytest.fixture(scope="module")
def engine(root: Path) -> Iterator[ContinuousBatching]:
    engine = make(root / "base", adapters={name: root / name for name in SHAPES})
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def expected(root: Path) -> dict[str | None, list[list[int]]]:
    """What `generate` of each merged model gives to each prompt alone."""
    import torch
    from transformers import AutoModelForCausalLM

    found: dict[str | None, list[list[int]]] = {}
    for who in WHO:
        model: Any = AutoModelForCausalLM.from_pretrained(root / (who or "base"), dtype="float32")
        rows = [torch.tensor([prompt]) for prompt in PROMPTS]
        found[who] = [model.generate(row, attention_mask=torch.ones_like(row), do_sample=False, max_new_tokens=20)[0, row.shape[1] :].tolist() for row in rows]
    return found


def ask(engine: ContinuousBatching, *asked: tuple[str | None, int]) -> list[list[int]]:
    """The greedy answers to prompts of an adapter, all at once."""

    async def one(who: str | None, number: int) -> list[int]:
        [(ids, finished, _)] = [told async for told in engine._outputs(PROMPTS[number], Sampling(max_tokens=20, temperature=0), who, by_token=False)]
        assert finished
        return ids

    async def all_of_them() -> list[list[int]]:
        return await asyncio.gather(*(one(*each) for each in asked))

    return asyncio.run(all_of_them())


def test_in_one_batch_each_answers_as_its_merged_model_alone(engine: ContinuousBatching, expected: dict[str | None, list[list[int]]]) -> None:
    asked = [(who, number) for number in range(len(PROMPTS)) for who in WHO] * 2  # more than fit at once, so that some join while others leave
    assert ask(engine, *asked) == [expected[who][number] for who, number in asked]
    assert all(len({tuple(expected[who][number]) for who in WHO}) == len(WHO) for number in range(len(PROMPTS)))


@pytest.mark.parametrize("order", [WHO, WHO[::-1]])
def test_what_one_left_in_the_cache_is_not_anothers(engine: ContinuousBatching, expected: dict[str | None, list[list[int]]], order: Any) -> None:
    for who in order:
        assert ask(engine, (who, 3)) == [expected[who][3]]


def test_a_cache_too_small_for_all_still_answers_all(root: Path, expected: dict[str | None, list[list[int]]]) -> None:
    """Requests are put back to free cache, and keep their adapter."""
    engine = make(root / "base", cache_tokens=96, max_requests=4, adapters={name: root / name for name in SHAPES})
    try:
        asked = [(who, number) for who in WHO for number in (0, 1, 2)]
        assert ask(engine, *asked) == [expected[who][number] for who, number in asked]
    finally:
        engine.close()


def test_scores_and_embeddings_are_the_merged_models(engine: ContinuousBatching, root: Path) -> None:
    for who in WHO:
        merged = make(root / (who or "base"))
        try:
            [[ours], [theirs]] = [asyncio.run(one.embed(PROMPTS[1:2], *name)) for one, name in ((engine, [who]), (merged, []))]
            assert ours.vector == pytest.approx(theirs.vector, abs=1e-5)
            [[ours_], [theirs_]] = [asyncio.run(one.score(PROMPTS[:1], 2, *name)) for one, name in ((engine, [who]), (merged, []))]
            assert [one.logprob for one in ours_[1:]] == pytest.approx([one.logprob for one in theirs_[1:]], abs=1e-4)
        finally:
            merged.close()


def test_the_weights_are_there_once(engine: ContinuousBatching) -> None:
    """The manager's model and the twin for whole texts hold the same tensors, adapters' too."""
    model, twin = engine._manager.model, engine._plain
    ours, theirs = ({name: p.data_ptr() for name, p in one.named_parameters()} for one in (model, twin))
    assert ours == theirs
    for path in ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"):
        [[hook], [other]] = [list(one.get_submodule(path)._forward_hooks.values()) for one in (model, twin)]
        assert hook.routes is not other.routes
        assert {name: [t.data_ptr() for t in pair] for name, pair in hook.weights.items()} == {name: [t.data_ptr() for t in pair] for name, pair in other.weights.items()}
        assert set(hook.weights) == ({"first", "second"} if "q_proj" in path else {"first"})


def test_an_adapter_frames_and_ends_its_texts_itself(root: Path, tmp_path: Path, expected: dict[str | None, list[list[int]]]) -> None:
    from transformers import GenerationConfig

    folder = shutil.copytree(root / "first", tmp_path / "first")
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    end = expected["first"][0][5]
    GenerationConfig(eos_token_id=[1, end]).save_pretrained(folder)
    engine = make(root / "base", adapters={"first": folder, "second": root / "second"})
    try:
        assert engine.encode(Chat(({"role": "user", "content": "Return"},)), 1, "first")
        with pytest.raises(Exception, match="no chat template"):
            engine.encode(Chat(({"role": "user", "content": "Return"},)), 1)
        first, second = ask(engine, ("first", 0), ("second", 0))
        assert first == expected["first"][0][: expected["first"][0].index(end) + 1]
        assert second == expected["second"][0]
    finally:
        engine.close()


def refused(error: FmrayError) -> str:
    assert (error.exit_code, "\n" in str(error)) == (2, False)
    return str(error)


def rewritten(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    from safetensors.torch import load_file, save_file

    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS)


def without_up(tensors: dict[str, Any]) -> dict[str, Any]:
    return {name: tensor for name, tensor in tensors.items() if "layers.0.self_attn.q_proj.lora_B" not in name}


def renamed(tensors: dict[str, Any]) -> dict[str, Any]:
    return {name.replace("q_proj", "query"): tensor for name, tensor in tensors.items()}


def wider(tensors: dict[str, Any]) -> dict[str, Any]:
    import torch

    return {name: torch.cat([tensor, tensor], dim=1) if "lora_A" in name else tensor for name, tensor in tensors.items()}


def to_the_output(tensors: dict[str, Any]) -> dict[str, Any]:
    import torch

    return tensors | {"base_model.model.lm_head.lora_A.weight": torch.ones(2, 32), "base_model.model.lm_head.lora_B.weight": torch.ones(320, 2)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without_up, "layers.0.self_attn.q_proj.lora_A.weight, which is no low-rank sum"),
        (renamed, "does not fit the base: its layer model.layers.0.self_attn.query"),
        (wider, "maps 64 to 32 features, and base has [32, 32] there"),
        (to_the_output, "lm_head, which is no low-rank sum to a linear layer of the model's body"),
        ({"use_dora": True}, "is LORA with use_dora; plain LORA is known"),
        ({"peft_type": "IA3"}, "is IA3; plain LORA is known"),
        ({"lora_alpha": "much"}, "is no adapter that can be read"),
        (WEIGHTS, "holds pickled weights, which can run code when they are read"),
        (CONFIG, "is no adapter (it has no adapter_config.json)"),
    ],
)
def test_what_is_no_adapter_of_this_base_is_one_line(root: Path, tmp_path: Path, change: Any, words: str) -> None:
    folder = shutil.copytree(root / "second" / ADAPTER, tmp_path / "a")
    if isinstance(change, str):
        (folder / "adapter_model.bin").write_bytes(b"\x80\x04.")
        (folder / change).unlink()
    elif isinstance(change, dict):
        (folder / CONFIG).write_text(json.dumps(json.loads((folder / CONFIG).read_text()) | change))
    else:
        rewritten(folder, change)
    with pytest.raises(ArtifactError) as caught:
        require_fit(read_adapter(folder), root / "base")
    assert words in refused(caught.value)


def test_peft_writes_the_same_adapter(root: Path, tmp_path: Path) -> None:
    """One written by peft is read as ours, and ours is opened by peft and names no directory of this machine."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    tuned(root / "base", 0, **SHAPES["first"]).save_pretrained(tmp_path / "theirs")
    theirs, ours = read_adapter(tmp_path / "theirs"), read_adapter(root / "first" / ADAPTER)
    assert (theirs.alpha, theirs.layers) == (ours.alpha, ours.layers)
    assert all(torch.equal(a, b) for layer in ours.layers for a, b in zip(theirs.weights()[layer], ours.weights()[layer], strict=True))
    assert str(root) not in (ours.folder / CONFIG).read_text()
    opened = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(root / "base", dtype="float32"), str(ours.folder)).merge_and_unload()
    merged = AutoModelForCausalLM.from_pretrained(root / "first", dtype="float32")
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(opened.parameters(), merged.parameters(), strict=True))


def specs(root: Path, names: list[str], adapters: dict[str, str]) -> Any:
    return specs_of([admit(root / name) for name in names], names, adapters)


def test_only_the_admitted_adapter_on_its_own_base_is_served(root: Path, experiment: Path, tmp_path: Path) -> None:
    found = specs(root, ["base", *SHAPES], dict.fromkeys(SHAPES, "base"))
    assert [(one.name, one.base) for one in found] == [("base", None), ("first", "base"), ("second", "base")]
    for adapters, words in (
        ({"frist": "base"}, "no model 'frist', did you mean 'first'"),
        ({"first": "bass"}, "no model 'bass', did you mean 'base'"),
        ({"first": "base", "second": "first"}, "'first' is an adapter itself"),
    ):
        with pytest.raises(ConfigError) as wrong:
            specs(root, ["base", *SHAPES], adapters)
        assert words in refused(wrong.value)
    with pytest.raises(ArtifactError) as plain:
        specs(root, ["base", "first"], {"base": "first"})
    assert "keeps no unmerged adapter" in refused(plain.value)
    with pytest.raises(ArtifactError) as foreign:
        specs(root, ["first", "second"], {"first": "second"})
    assert "was not tuned on 'second'" in refused(foreign.value)
    with pytest.raises(ConfigError) as headed:
        specs_of([admit(experiment / "tuned"), admit(root / "first")], ["tuned", "first"], {"first": "tuned"})
    assert "adapters are shared by causal models" in refused(headed.value)
    for name in ("base", "base_gate", "second", "second_gate"):
        shutil.copytree(root / name, tmp_path / name)
    rewritten(tmp_path / "second" / ADAPTER, lambda tensors: {name: 2 * tensor for name, tensor in tensors.items()})
    with pytest.raises(ArtifactError) as changed:
        specs(tmp_path, ["base", "second"], {"second": "base"})
    assert "is not the adapter that was admitted" in refused(changed.value)


def test_what_an_engine_cannot_do_is_refused_before_anything_starts() -> None:
    for fields, words in (
        ({"adapters": {"a": "b"}, "engine": "vllm"}, "the engine vllm takes none here"),
        ({"adapters": {"a": "b"}, "canary": {"share": 0.1, "rules": ["canary/error_rate <= 0.1"]}}, "a canary is of a model with weights of its own"),
        ({"max_loaded": 2, "engine": "vllm"}, "keeps its model as long as its replica lives"),
        ({"max_loaded": 0}, "max_loaded"),
    ):
        with pytest.raises(ConfigError) as caught:
            load_config(DeployConfig, fields, where="served")
        assert words in refused(caught.value)
    assert "adapters" not in DeployConfig().identity()
    assert DeployConfig(adapters={"a": "b"}).identity()["adapters"] == {"a": "b"}
    for options in (["first"], ["=base"], ["first=base", "first=other"]):
        with pytest.raises(ConfigError):
            bases_of(options)


def test_a_vocabulary_of_its_own_is_refused(root: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(root / "second", tmp_path / "second")
    plain = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(plain.replace('"<|pad|>"', '"<|void|>"'))
    with pytest.raises(ArtifactError, match="another vocabulary than its base"):
        make(root / "base", adapters={"second": folder})


def test_the_printed_config_holds_the_adapters(root: Path) -> None:
    arguments = ["serve", *(str(root / name) for name in ("base", *SHAPES)), "--print-config"]
    done = CliRunner().invoke(app, [*arguments, "--adapter", "first=base", "--adapter", "second=base"], catch_exceptions=False)
    [one] = yaml.safe_load(done.stdout)["applications"]
    assert one["args"]["config"]["adapters"] == {"first": "base", "second": "base"}
    assert [deployment["name"] for deployment in one["deployments"]] == ["model-base", "face"]
    assert manifest.application(one["args"]) is not None
    done = CliRunner().invoke(app, [*arguments, "--max-loaded", "2"], catch_exceptions=False)
    [one] = yaml.safe_load(done.stdout)["applications"]
    assert [deployment["name"] for deployment in one["deployments"]] == ["models", "face"]
    assert manifest.application(one["args"]) is not None


def test_a_context_is_as_long_as_the_bases(engine: ContinuousBatching) -> None:
    assert engine.max_model_len == MAX_LEN
    with pytest.raises(Exception, match="maximum context length"):
        engine.encode([3] * MAX_LEN, 1, "first")


def test_an_import_with_a_base_is_their_sum(root: Path, tmp_path: Path) -> None:
    """An adapter from outside enters by the door of every model: merged, so that a gate can judge it, with itself beside."""
    import torch
    from transformers import AutoModelForCausalLM

    from tests.train.tiny import run

    base = load(root / "base", Checkpoint)
    made = run("import", {"path": str(root / "first" / ADAPTER)}, tmp_path / "first", base=base)
    ours, theirs = (AutoModelForCausalLM.from_pretrained(folder, dtype="float32") for folder in (made.path, root / "first"))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    first = load(root / "first", Checkpoint).payload
    assert (made.payload.parent, made.payload.adapter_digest) == (base.fingerprint, first.adapter_digest)
    with pytest.raises(ConfigError, match="is an adapter, and there is no base"):
        run("import", {"path": str(root / "first" / ADAPTER)}, tmp_path / "alone")
    with pytest.raises(ConfigError, match="is a model of its own"):
        run("import", {"path": str(root / "first")}, tmp_path / "whole", base=base)
    other = make_adapter(tmp_path / "other", base, 5, r=2, target_modules=["q_proj"])
    rewritten(other.path / ADAPTER, wider)
    with pytest.raises(ArtifactError, match="does not fit the base"):
        run("import", {"path": str(other.path / ADAPTER)}, tmp_path / "wide", base=base)
