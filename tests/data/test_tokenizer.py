"""Opening a tokenizer: the ids of its special tokens, and blindness to special tokens that a text quotes."""

import json
from pathlib import Path

import pytest

from fmray.core.errors import DataError
from fmray.data.tokenizer import encode, load
from fmray.data.tokenizers._trained import BOS, EOS, PAD
from fmray.data.tokenizers.bpe import Bpe
from fmray.data.tokenizers.pretrained import Pretrained
from tests.data.corpora import topics


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "trained"
    Bpe().make([topics()[:500]], 400, 64, path)
    return path


def test_auto_tokenizer_opens_it(folder: Path) -> None:
    from transformers import AutoTokenizer

    opened = AutoTokenizer.from_pretrained(folder)
    tokenizer, special = load(folder)
    assert (opened.bos_token, opened.eos_token, opened.pad_token) == (BOS, EOS, PAD)
    assert (opened.bos_token_id, opened.eos_token_id, opened.pad_token_id) == (special.bos, special.eos, special.pad)
    assert (len(opened), opened.model_max_length) == (400, 64)
    text = "Größe, 数 and\ttabs\n\nof “text” 🙂"
    (ids,) = encode(tokenizer, special, [text])
    assert opened(text)["input_ids"] == ids[:-1].tolist()
    assert opened.decode(ids, skip_special_tokens=True) == text


def test_special_tokens_in_a_text_are_ordinary_text(folder: Path) -> None:
    tokenizer, special = load(folder)
    (ids,) = encode(tokenizer, special, [f"a {EOS} that is quoted {PAD}{BOS}"])
    assert (ids.count(special.bos), ids.count(special.eos), ids.count(special.pad)) == (1, 1, 0)
    assert tokenizer.decode(ids[1:-1], skip_special_tokens=False) == f"a {EOS} that is quoted {PAD}{BOS}"


def altered(folder: Path, target: Path, **names: object) -> Path:
    Pretrained(path=str(folder)).make([], 400, 64, target)
    config = json.loads((target / "tokenizer_config.json").read_text()) | names
    (target / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    return target


def test_missing_special_tokens_are_taken_from_the_others_or_refused(folder: Path, tmp_path: Path) -> None:
    _, special = load(folder)
    _, without_bos = load(altered(folder, tmp_path / "a", bos_token=None, pad_token=None, eos_token={"content": EOS}))
    assert (without_bos.bos, without_bos.eos, without_bos.pad) == (special.eos, special.eos, special.eos)
    with pytest.raises(DataError, match="neither a bos_token nor an eos_token"):
        load(altered(folder, tmp_path / "b", bos_token=None, eos_token=None))


def test_a_directory_that_is_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(DataError, match=r"has no tokenizer\.json; it holds: model\.safetensors"):
        Pretrained(path=str(tmp_path)).identity()
    with pytest.raises(DataError, match="it holds: nothing"):
        Pretrained(path=str(tmp_path / "nowhere")).files()
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="cannot be opened as a tokenizer"):
        load(tmp_path)
