"""Every kind of tokenizer: what all of them hold, then what is each one's own."""

import json
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest

from fmray.core.config import load_config
from fmray.core.errors import ConfigError, DataError, FmrayError
from fmray.data.tokenizer import encode, load, vocabulary_size
from fmray.data.tokenizers import TokenizerModel
from fmray.data.tokenizers.bpe import Bpe
from fmray.data.tokenizers.character import Character
from fmray.data.tokenizers.pretrained import Pretrained
from fmray.data.tokenizers.unigram import Unigram
from fmray.data.tokenizers.wordpiece import WordPiece

ENGLISH = [part.strip() for text in list(topics.values())[:12] for part in text.split("\n\n") if part.strip()]
CHINESE = ["满纸荒唐言，一把辛酸泪。都云作者痴，谁解其中味？", "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。"] * 8
SAMPLE = [ENGLISH, CHINESE]
TRAINED = ("bpe", "character", "unigram", "wordpiece")
SIZES = {"bpe": 400, "character": 400, "unigram": 500, "wordpiece": 300}
EXACT = ("bpe", "character", "unigram")


def member(kind: str, **fields: Any) -> Any:
    return TokenizerModel.members()[kind].model_validate({"type": kind, **fields})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tokenizers")
    for kind in TRAINED:
        member(kind, sentinels=2).make(SAMPLE, SIZES[kind], 64, root / kind)
    return {kind: root / kind for kind in TRAINED}


def test_these_are_all_members() -> None:
    assert set(TokenizerModel.members()) == {*TRAINED, "pretrained"}


@pytest.mark.parametrize("kind", TRAINED)
def test_auto_tokenizer_opens_it_and_finds_every_special_token(made: dict[str, Path], kind: str) -> None:
    from transformers import AutoTokenizer

    opened = AutoTokenizer.from_pretrained(made[kind])
    tokenizer, special = load(made[kind])
    assert (opened.bos_token_id, opened.eos_token_id, opened.pad_token_id) == (special.bos, special.eos, special.pad)
    named = [opened.mask_token, "<extra_id_0>", "<extra_id_1>"]
    assert len({special.bos, special.eos, special.pad, *(tokenizer.token_to_id(text) for text in named)} - {None}) == 6
    assert opened.mask_token_id == tokenizer.token_to_id(opened.mask_token)
    assert set(named) <= set(opened.all_special_tokens)
    assert (opened.unk_token is None) == (kind == "bpe")
    assert (len(opened), opened.model_max_length) == (vocabulary_size(tokenizer), 64)
    if kind == "wordpiece":
        assert (opened.cls_token_id, opened.sep_token_id) == (special.bos, special.eos)


@pytest.mark.parametrize("kind", TRAINED)
def test_it_frames_a_text_by_itself_as_rows_are_framed(made: dict[str, Path], kind: str) -> None:
    from transformers import AutoTokenizer

    opened = AutoTokenizer.from_pretrained(made[kind])
    tokenizer, special = load(made[kind])
    text = "the function came back, 谁解其中味"
    (row,) = encode(tokenizer, special, [text])
    alone = opened(text)["input_ids"]
    assert alone == (row if kind == "wordpiece" else row[:-1]).tolist()
    assert alone.count(special.bos) == 1
    assert opened("")["input_ids"][0] == special.bos


@pytest.mark.parametrize("kind", TRAINED)
def test_special_tokens_and_bytes_that_a_text_quotes_are_ordinary_text(made: dict[str, Path], kind: str) -> None:
    from transformers import AutoTokenizer

    opened = AutoTokenizer.from_pretrained(made[kind])
    tokenizer, special = load(made[kind])
    quoted = " ".join([*opened.all_special_tokens, "<0x41>"])
    (ids,) = encode(tokenizer, special, [quoted])
    known = {opened.convert_tokens_to_ids(text) for text in opened.all_special_tokens if text != opened.unk_token}
    assert not known & set(ids[1:-1])
    assert tokenizer.token_to_id("<0x41>") not in ids
    if kind in ("bpe", "unigram"):
        assert tokenizer.decode(ids[1:-1].tolist(), skip_special_tokens=False) == quoted


@pytest.mark.parametrize("kind", EXACT)
def test_decoding_gives_the_text_back(made: dict[str, Path], kind: str) -> None:
    from transformers import AutoTokenizer

    opened = AutoTokenizer.from_pretrained(made[kind])
    tokenizer, special = load(made[kind])
    texts = [*ENGLISH[:4], *CHINESE[:2], "two  spaces\nand a line", ""]
    if kind != "character":
        texts.append("Größe\t数 🙂")
    for text, ids in zip(texts, encode(tokenizer, special, texts), strict=True):
        assert (ids[0], ids[-1]) == (special.bos, special.eos)
        assert tokenizer.decode(ids.tolist()) == text
        assert opened.decode(ids.tolist(), skip_special_tokens=True) == text


MAKE = """
import sys
from tests.data.test_tokenizers import SAMPLE, SIZES, member
from pathlib import Path
for kind in sys.argv[2:]:
    member(kind, sentinels=2).make(SAMPLE, SIZES[kind], 64, Path(sys.argv[1]) / kind)
"""


@pytest.mark.parametrize("parallel", ["true", "false"])
def test_the_same_sample_gives_the_same_bytes_in_another_process(made: dict[str, Path], tmp_path: Path, parallel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", parallel)
    subprocess.run([sys.executable, "-c", MAKE, str(tmp_path), *TRAINED], check=True, cwd=Path(__file__).parents[2])
    for kind in TRAINED:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            assert (tmp_path / kind / name).read_bytes() == (made[kind] / name).read_bytes(), kind


@pytest.mark.parametrize("kind", TRAINED)
def test_too_small_a_vocabulary_is_refused_by_its_least_size(tmp_path: Path, kind: str) -> None:
    least = member(kind).smallest
    with pytest.raises(ConfigError, match=f"vocab_size: is {least - 1}, .* set vocab_size to at least {least}"):
        member(kind).make(SAMPLE, least - 1, 64, tmp_path)


@pytest.mark.parametrize("kind", ["bpe", "unigram", "wordpiece"])
def test_too_large_a_vocabulary_says_how_many_the_sample_supports(tmp_path: Path, kind: str) -> None:
    with pytest.raises(DataError, match=r"supports a vocabulary of \d+, not 5000") as error:
        member(kind).make(SAMPLE, 5000, 64, tmp_path)
    assert "\n" not in str(error.value)
    reached = int(str(error.value).split(" of ")[1].split(",")[0])
    member(kind).make(SAMPLE, reached, 64, tmp_path)
    assert vocabulary_size(load(tmp_path)[0]) == reached


def test_wordpiece_knows_chinese_characters_as_words_and_drops_case_as_it_is_told(tmp_path: Path) -> None:
    for lowercase, word in ((True, "captain"), (False, "Captain")):
        WordPiece(lowercase=lowercase).make([["Captain"] * 9, ["谁解"]], 24, 64, tmp_path)
        tokenizer, special = load(tmp_path)
        (ids,) = encode(tokenizer, special, ["Captain 谁解"])
        assert [tokenizer.id_to_token(i) for i in ids] == ["[CLS]", word, "谁", "解", "[SEP]"]
        pair = tokenizer.encode("谁", "解")
        assert (pair.tokens, pair.type_ids) == (["[CLS]", "谁", "[SEP]", "解", "[SEP]"], [0, 0, 0, 1, 1])


def test_wordpiece_keeps_the_commonest_characters_where_there_is_no_room_for_all(tmp_path: Path) -> None:
    WordPiece().make([["天" * 5 + "地" * 4 + "人" * 3]], 7, 64, tmp_path)
    tokenizer, special = load(tmp_path)
    (ids,) = encode(tokenizer, special, ["人地天"])
    assert [tokenizer.id_to_token(i) for i in ids] == ["[CLS]", "[UNK]", "地", "天", "[SEP]"]


def test_characters_are_one_token_each_and_a_protein_needs_no_more_than_it_has(tmp_path: Path) -> None:
    proteins = ["MKRISTTITTTITITTGNGAG", "MRVLKFGGTSVANAERFLRVADILESNARQGQVATVLSAPAKITNHLVAMIEKTISGQDALPNI"]
    Character().make([proteins], 1000, 64, tmp_path)
    tokenizer, special = load(tmp_path)
    letters = set("".join(proteins))
    assert vocabulary_size(tokenizer) == 5 + len(letters)
    (ids,) = encode(tokenizer, special, ["MKW*K"])
    assert [tokenizer.id_to_token(i) for i in ids] == ["<|bos|>", "M", "K", "<|unk|>", "<|unk|>", "K", "<|eos|>"]


def test_characters_beyond_the_vocabulary_are_the_rarest(tmp_path: Path) -> None:
    Character().make([["cab" * 3, "ca", "c"]], 7, 64, tmp_path)
    assert {"c", "a"} <= set(load(tmp_path)[0].get_vocab())
    assert "b" not in load(tmp_path)[0].get_vocab()
    with pytest.raises(DataError, match="holds no character"):
        Character().make([[""]], 7, 64, tmp_path)


def test_unigram_without_bytes_has_an_unknown_token(tmp_path: Path) -> None:
    Unigram(byte_fallback=False, character_coverage=1.0).make(SAMPLE, 200, 64, tmp_path)
    tokenizer, special = load(tmp_path)
    (ids,) = encode(tokenizer, special, ["the 🙂"])
    assert tokenizer.id_to_token(ids[-2]) == "<|unk|>"


def test_unigram_says_when_the_characters_alone_are_too_many(tmp_path: Path) -> None:
    many = ["".join(chr(0x4E00 + i) for i in range(300))] * 3
    with pytest.raises(DataError, match=r"single characters .* need \d+; set vocab_size to more than \d+ or lower tokenizer.character_coverage"):
        Unigram(byte_fallback=False, character_coverage=1.0).make([many], 100, 64, tmp_path)


def test_a_pretrained_tokenizer_is_copied_known_by_content_and_must_have_the_configured_size(made: dict[str, Path], tmp_path: Path) -> None:
    taken = Pretrained(path=str(made["bpe"]))
    assert not taken.is_trained
    taken.make(iter(()), 400, 64, tmp_path / "copy")
    assert (tmp_path / "copy" / "tokenizer.json").read_bytes() == (made["bpe"] / "tokenizer.json").read_bytes()
    assert Pretrained(path=str(tmp_path / "copy")).identity() == taken.identity()
    assert Pretrained(path=str(made["unigram"])).identity() != taken.identity()
    with pytest.raises(ConfigError, match=r"vocab_size: is 512, but the tokenizer in .* has 400; set vocab_size: 400"):
        taken.make(iter(()), 512, 64, tmp_path / "other")


def test_a_directory_that_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(DataError, match=r"has no tokenizer\.json; it holds: model\.safetensors"):
        Pretrained(path=str(tmp_path)).identity()
    with pytest.raises(DataError, match="it holds: nothing"):
        Pretrained(path=str(tmp_path / "nowhere")).files()


def test_a_pretrained_encoder_is_framed_by_cls_and_sep(made: dict[str, Path], tmp_path: Path) -> None:
    Pretrained(path=str(made["wordpiece"])).make(iter(()), 300, 64, tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in config.items() if k not in ("bos_token", "eos_token")}))
    assert load(tmp_path)[1] == load(made["wordpiece"])[1]


def test_kinds_are_chosen_by_type_in_the_experiment_file() -> None:
    from fmray.core.config import Config

    class Step(Config):
        tokenizer: TokenizerModel = Bpe()

    assert load_config(Step, {"tokenizer": {"type": "unigram", "sentinels": 100}}).tokenizer == Unigram(sentinels=100)
    assert Step().identity() != load_config(Step, {"tokenizer": {"type": "bpe", "sentinels": 1}}).identity()
    with pytest.raises(FmrayError, match="did you mean 'wordpiece'"):
        load_config(Step, {"tokenizer": {"type": "wordpeice"}})
