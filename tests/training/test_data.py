"""Datasets to sequences: every source and format, what counts, what is dropped and how that is told."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tc_adapters_lens.errors import ConfigError, DataError
from tc_adapters_lens.training.config import DataConfig
from tc_adapters_lens.training.data import DataReport, TokenSequences, load_sequences

WORDS = [
    "<unk>",
    "<bos>",
    "<eos>",
    "<user>",
    "<bot>",
    "<think>",
    "</think>",
    "a",
    "b",
    "c",
    "d",
    "e",
    "f",
    "yes",
    "no",
]
ID = {word: index for index, word in enumerate(WORDS)}
D_VOCAB, N_CTX = len(WORDS), 16

PLAIN = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<user>{{ m.content }}"
    "{% else %}<bot>{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<bot>{% endif %}"
)
MARKED = PLAIN.replace(
    "<bot>{{ m.content }}{{ eos_token }}",
    "<bot>{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}",
)
STRIPPING = PLAIN.replace("<bot>{{ m.content }}", "<bot>{{ m.content.split('</think>')[-1] }}")  # as DeepSeek's does
CHAT = [
    {"role": "user", "content": "a b"},
    {"role": "assistant", "content": "<think> c </think> yes"},
    {"role": "user", "content": "d"},
    {"role": "assistant", "content": "no"},
]
CHAT_WORDS = ["<bos>", "<user>", "a", "b", "<bot>", "<think>", "c", "</think>", "yes", "<eos>"]
CHAT_WORDS += ["<user>", "d", "<bot>", "no", "<eos>"]
CHAT_COUNTED = [0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 0, 0, 0, 1, 1]


@pytest.fixture(autouse=True)
def _cache_is_temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def make_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    def make(chat_template: str | None = PLAIN, adds_bos: bool = False) -> PreTrainedTokenizerFast:
        backend = Tokenizer(models.WordLevel(ID, unk_token="<unk>"))
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        backend.add_special_tokens(WORDS[:7])
        if adds_bos:
            backend.post_processor = processors.TemplateProcessing(
                single="<bos> $A", special_tokens=[("<bos>", ID["<bos>"])]
            )
        return PreTrainedTokenizerFast(
            tokenizer_object=backend,
            bos_token="<bos>",
            eos_token="<eos>",
            unk_token="<unk>",
            chat_template=chat_template,
        )

    return make


@pytest.fixture
def tokenizer(make_tokenizer: Callable[..., PreTrainedTokenizerFast]) -> PreTrainedTokenizerFast:
    return make_tokenizer()


def load(
    rows: Any, tokenizer: PreTrainedTokenizerFast | None, n_ctx: int = N_CTX, **options: Any
) -> tuple[TokenSequences, DataReport]:
    return load_sequences(DataConfig(path="memory", **options), tokenizer, D_VOCAB, n_ctx, rows)


def words(sequences: TokenSequences, index: int = 0) -> list[str]:
    return [WORDS[token] for token in sequences[index][0]]


def counted(sequences: TokenSequences, index: int = 0) -> list[int]:
    return sequences[index][1].astype(int).tolist()


class TestText:
    def test_tokens_all_count(self, tokenizer: PreTrainedTokenizerFast):
        sequences, report = load([{"text": "a b c"}, {"text": "d zzz"}], tokenizer)
        assert [words(sequences, 0), words(sequences, 1)] == [["a", "b", "c"], ["d", "<unk>"]]
        assert sequences.mask.all()
        assert (report.n_rows, report.n_used, report.n_tokens, report.n_masked_out) == (2, 2, 5, 0)
        assert report.format == "text (column text)"

    def test_begin_of_sentence_once(self, make_tokenizer: Callable[..., PreTrainedTokenizerFast]):
        sequences, _ = load([{"text": "a b"}, {"text": "<bos> a b"}], make_tokenizer(adds_bos=True))
        assert words(sequences, 0) == words(sequences, 1) == ["<bos>", "a", "b"]

    def test_other_column(self, tokenizer: PreTrainedTokenizerFast):
        sequences, _ = load([{"body": "a b", "text": "c d"}], tokenizer, text_column="body")
        assert words(sequences) == ["a", "b"]

    def test_response_is_refused(self, tokenizer: PreTrainedTokenizerFast):
        with pytest.raises(DataError, match=r"needs chats or token ids\. Got plain text"):
            load([{"text": "a b"}], tokenizer, loss_on="response")


class TestTokens:
    def test_all(self):
        sequences, _ = load([{"input_ids": [7, 8, 9], "prompt_length": 1}], None)
        assert words(sequences) == ["a", "b", "c"]
        assert counted(sequences) == [1, 1, 1]

    def test_response(self):
        rows = [{"input_ids": [7, 8, 9], "prompt_length": 1}, {"input_ids": [7, 8], "prompt_length": 2}]
        sequences, report = load(rows, None, loss_on="response")
        assert counted(sequences) == [0, 1, 1]
        assert report.dropped["no token that counts"].first_rows == (1,)
        assert (report.n_counted, report.n_masked_out) == (2, 1)

    def test_response_needs_prompt_length(self):
        with pytest.raises(DataError, match=r"needs a column prompt_length\. Got columns input_ids"):
            load([{"input_ids": [7, 8]}], None, loss_on="response")

    @pytest.mark.parametrize("bad", [D_VOCAB, -1, 2**40])
    def test_out_of_range(self, bad: int):
        with pytest.raises(DataError) as caught:
            load([{"input_ids": [7, 8]}, {"input_ids": [7, 8, bad]}], None)
        assert str(caught.value) == (
            f"token ids must be from 0 to {D_VOCAB - 1}, the model's vocabulary. Got {bad} in row 1, "
            "position 2; use the target's own tokenizer."
        )

    def test_ids_of_another_tokenizer(self, tokenizer: PreTrainedTokenizerFast):
        with pytest.raises(DataError, match=r"from 0 to 8, .* Got 9 in row 0, position 1"):
            load_sequences(DataConfig("memory"), tokenizer, 9, N_CTX, [{"text": "a c"}])

    def test_unusable_rows_are_counted_and_named(self):
        rows = [{"input_ids": ids} for ids in ([7], [], None, [7, 8], [7.5, 8.0], [[7, 8]], [7])]
        sequences, report = load(rows, None)
        assert len(sequences) == 1
        assert {why: (d.count, d.first_rows) for why, d in report.dropped.items()} == {
            "shorter than 2 tokens": (2, (0, 6)),
            "no token ids": (2, (1, 2)),
            "the token ids are not a list of whole numbers": (2, (4, 5)),
        }
        assert (report.n_rows, report.n_used) == (7, 1)
        dropped = next(line for line in report.lines() if line.startswith("dropped"))
        assert "dropped: 6 rows: shorter than 2 tokens (2, first: row 0, 6)" in dropped

    def test_nothing_usable(self):
        with pytest.raises(DataError) as caught:
            load([{"input_ids": [7]}, {"input_ids": []}], None)
        assert str(caught.value) == (
            "a dataset must have a usable row. Got none in the given rows: "
            "shorter than 2 tokens (1, first: row 0); no token ids (1, first: row 1)."
        )


class TestChat:
    def test_all_count(self, tokenizer: PreTrainedTokenizerFast):
        sequences, report = load([{"messages": CHAT}], tokenizer)
        assert words(sequences) == CHAT_WORDS
        assert sequences.mask.all()
        assert report.format == "chat (column messages)"

    @pytest.mark.parametrize("template", [PLAIN, MARKED])
    def test_response(self, make_tokenizer: Callable[..., PreTrainedTokenizerFast], template: str):
        sequences, _ = load([{"messages": CHAT}], make_tokenizer(template), loss_on="response")
        assert words(sequences) == CHAT_WORDS
        assert counted(sequences) == CHAT_COUNTED

    def test_marked_response_that_starts_and_ends_with_white_space(
        self, make_tokenizer: Callable[..., PreTrainedTokenizerFast]
    ):
        template = MARKED.replace("{% generation %}", "{% generation %} ").replace(
            "{{ eos_token }}{% end", "{{ eos_token }} {% end"
        )
        sequences, _ = load([{"messages": CHAT}], make_tokenizer(template), loss_on="response")
        assert counted(sequences) == CHAT_COUNTED

    def test_rows_keep_their_own_masks(self, tokenizer: PreTrainedTokenizerFast):
        rows = [{"messages": CHAT[:2]}, {"messages": None}, {"messages": CHAT[2:]}]
        sequences, _ = load(rows, tokenizer, loss_on="response")
        assert counted(sequences, 0) == [0, 0, 0, 0, 0, 1, 1, 1, 1, 1]
        assert counted(sequences, 1) == [0, 0, 0, 0, 1, 1]

    def test_conversations_of_from_and_value(self, tokenizer: PreTrainedTokenizerFast):
        roles = {"user": "human", "assistant": "gpt"}
        rows = [{"conversations": [{"from": roles[m["role"]], "value": m["content"]} for m in CHAT]}]
        sequences, report = load(rows, tokenizer, loss_on="response")
        assert words(sequences) == CHAT_WORDS
        assert counted(sequences) == CHAT_COUNTED
        assert report.format == "chat (column conversations)"

    def test_other_column(self, tokenizer: PreTrainedTokenizerFast):
        sequences, _ = load([{"turns": CHAT, "text": "a b"}], tokenizer, chat_column="turns")
        assert words(sequences) == CHAT_WORDS

    def test_template_writes_the_special_tokens(self, make_tokenizer: Callable[..., PreTrainedTokenizerFast]):
        sequences, _ = load([{"messages": CHAT}], make_tokenizer(adds_bos=True))
        assert words(sequences) == CHAT_WORDS

    def test_template_that_drops_the_reasoning(self, make_tokenizer: Callable[..., PreTrainedTokenizerFast]):
        tokenizer = make_tokenizer(STRIPPING)
        with pytest.raises(DataError) as caught:
            load([{"messages": CHAT[2:]}, {"messages": CHAT}], tokenizer)
        message = str(caught.value)
        assert "must keep all that the assistant said. Got one that drops part of row 1" in message
        assert "set data.chat_template" in message
        assert "\n" not in message

        kept, _ = load([{"messages": CHAT}], tokenizer, chat_template=PLAIN)
        assert words(kept) == CHAT_WORDS
        chosen, report = load([{"messages": CHAT}], tokenizer, chat_template=STRIPPING)
        assert "<think>" not in words(chosen)
        assert report.notes == ("chat template: it drops part of what the assistant said in 1 rows",)

    def test_template_may_change_white_space(self, make_tokenizer: Callable[..., PreTrainedTokenizerFast]):
        template = PLAIN.replace(
            "<bot>{{ m.content }}", "<bot>{{ m.content | trim | replace('</think>', '</think>\n\n') }}"
        )
        chat = [CHAT[0], {"role": "assistant", "content": "  <think> c\n</think>yes\n"}]
        sequences, _ = load([{"messages": chat}], make_tokenizer(template))
        assert words(sequences)[-5:] == ["<think>", "c", "</think>", "yes", "<eos>"]

    def test_template_file(self, tokenizer: PreTrainedTokenizerFast, tmp_path: Path):
        (tmp_path / "mine.jinja").write_text("<bos>" + PLAIN)
        sequences, _ = load([{"messages": CHAT}], tokenizer, chat_template=str(tmp_path / "mine.jinja"))
        assert words(sequences)[:3] == ["<bos>", "<bos>", "<user>"]
        with pytest.raises(ConfigError, match="must be Jinja text or a file"):
            load([{"messages": CHAT}], tokenizer, chat_template="no-such.jinja")

    def test_no_template(self, make_tokenizer: Callable[..., PreTrainedTokenizerFast]):
        with pytest.raises(
            DataError, match=r"needs a chat template\. Got a tokenizer without one; set data\.chat_template"
        ):
            load([{"messages": CHAT}], make_tokenizer(None))

    def test_invalid_template(self, tokenizer: PreTrainedTokenizerFast):
        with pytest.raises(DataError, match=r"must be valid Jinja\. Got an error in line 2: Encountered unknown tag"):
            load([{"messages": CHAT}], tokenizer, chat_template="{{ bos_token }}\n{% fore m in messages %}")

    @pytest.mark.parametrize(
        "template",
        [
            PLAIN.partition("{% if add_generation_prompt %}")[0],  # has no generation prompt
            PLAIN.replace("%}<bot>{% endif %}", "%}<bot> <think>{% endif %}"),  # its prompt begins no response
        ],
    )
    def test_responses_are_not_guessed(self, make_tokenizer: Callable[..., PreTrainedTokenizerFast], template: str):
        with pytest.raises(DataError, match=r"Got neither in row 0; set data\.chat_template .*{% generation %}"):
            load([{"messages": CHAT[2:]}], make_tokenizer(template), loss_on="response")
        assert load([{"messages": CHAT[2:]}], make_tokenizer(template))[0].mask.all()

    def test_unusable_rows(self, tokenizer: PreTrainedTokenizerFast):
        refusing = PLAIN.replace(
            "{% for",
            "{% if messages[0].role != 'user' %}{{ raise_exception('user first') }}{% endif %}{% for",
            1,
        )
        chats: list[Any] = [
            CHAT,
            [],
            None,
            "a b",
            [{"role": "user"}],
            [{"role": "user", "content": None}],
            ["a"],
            [{"role": "user", "content": " "}],
            [{"role": "system", "content": "a"}],
        ]
        sequences, report = load([{"messages": chat} for chat in chats], tokenizer, chat_template=refusing)
        assert len(sequences) == 1
        assert {why: dropped.first_rows for why, dropped in report.dropped.items()} == {
            "no messages": (1, 2, 3),
            "a message has no role or no text": (4, 5),
            "a message is not a mapping of role and content": (6,),
            "every message is empty": (7,),
            "refused by the chat template": (8,),
        }
        assert report.notes == ("chat template: first refusal: user first",)

    def test_chats_without_a_response(self, tokenizer: PreTrainedTokenizerFast):
        rows = [{"messages": CHAT}, {"messages": CHAT[:1]}, {"messages": CHAT[1:2]}]
        _, report = load(rows, tokenizer, loss_on="response")
        assert set(report.dropped) == {"no token that counts", "the assistant speaks first"}
        assert load(rows, tokenizer)[1].n_used == 3

    def test_needs_a_tokenizer(self):
        with pytest.raises(DataError, match="text and chats need a tokenizer"):
            load([{"messages": CHAT}], None)

    def test_shipped_deepseek_template(self, make_tokenizer: Callable[..., PreTrainedTokenizerFast]):
        template = (Path(__file__).parents[2] / "configs" / "deepseek_think.jinja").read_text(encoding="utf-8")
        tokenizer = make_tokenizer(STRIPPING)
        asked, said = (
            {"role": "user", "content": "Q"},
            {"role": "assistant", "content": "<think>\nT\n</think>\n\nA"},
        )
        render = tokenizer.apply_chat_template
        whole = "<bos><\uff5cUser\uff5c>Q<\uff5cAssistant\uff5c><think>\nT\n</think>\n\nA<eos>"
        assert render([asked, said], chat_template=template, tokenize=False) == whole
        after_prompt = {**said, "content": "T\n</think>\n\nA"}  # sampled after "<think>\n"
        assert render([asked, after_prompt], chat_template=template, tokenize=False) == whole
        prompt = render([asked], chat_template=template, tokenize=False, add_generation_prompt=True)
        assert prompt == "<bos><\uff5cUser\uff5c>Q<\uff5cAssistant\uff5c>"
        system = {"role": "system", "content": "S"}
        assert render([system, asked], chat_template=template, tokenize=False) == "<bos>S<\uff5cUser\uff5c>Q"


class TestLength:
    ROWS = ({"input_ids": [7, 8, 9, 10, 11]}, {"input_ids": [7, 8]}, {"input_ids": [9, 10, 11, 12]})

    def test_truncate(self):
        sequences, report = load(self.ROWS, None, context_size=3)
        assert sequences.lengths.tolist() == [3, 2, 3]
        assert words(sequences) == ["a", "b", "c"]
        assert (report.n_truncated, report.n_tokens_cut, report.longest) == (2, 3, 3)
        assert "truncation: at 3 tokens, 2 documents cut (3 tokens lost)" in report.lines()

    def test_drop(self):
        sequences, report = load(self.ROWS, None, context_size=4, too_long="drop")
        assert sequences.lengths.tolist() == [2, 4]
        assert report.dropped["longer than 4 tokens"].first_rows == (0,)
        assert "truncation: off, documents longer than 4 tokens are dropped" in report.lines()

    def test_model_is_the_limit_by_default(self):
        sequences, _ = load(self.ROWS, None, n_ctx=4)
        assert sequences.lengths.tolist() == [4, 2, 4]

    def test_more_than_the_model_takes(self):
        with pytest.raises(ConfigError, match=r"Got 17 and 16 \(n_ctx\)"):
            load(self.ROWS, None, context_size=17)

    def test_prompt_as_long_as_the_context(self):
        rows = [{"input_ids": [7, 8, 9], "prompt_length": 2}, {"input_ids": [7, 8, 9], "prompt_length": 1}]
        sequences, report = load(rows, None, context_size=2, loss_on="response")
        assert len(sequences) == 1
        assert report.dropped["no token that counts"].first_rows == (0,)

    def test_packing(self):
        sequences, report = load(self.ROWS, None, context_size=3, packing=True)
        assert [sequences[i][0].tolist() for i in range(4)] == [[7, 8, 9], [10, 11, 7], [8, 9, 10], [11, 12]]
        assert (report.n_used, report.n_sequences, report.n_truncated) == (3, 4, 0)
        lines = "\n".join(report.lines())
        assert "packing: documents are joined into sequences of 3 tokens, which attend across documents" in lines
        assert "truncation: off, a document goes on in the next packed sequence" in lines

    def test_packing_leaves_out_a_last_single_token(self):
        sequences, _ = load(self.ROWS, None, context_size=5, packing=True)  # 11 tokens
        assert sequences.lengths.tolist() == [5, 5]

    def test_packing_and_dropping(self):
        sequences, report = load(self.ROWS, None, context_size=4, packing=True, too_long="drop")
        assert [sequences[i][0].tolist() for i in range(2)] == [[7, 8, 9, 10], [11, 12]]
        assert report.dropped["longer than 4 tokens"].count == 1

    def test_packing_keeps_masks(self):
        rows = [
            {"input_ids": [7, 8, 9, 10, 11], "prompt_length": 4},
            {"input_ids": [7, 8], "prompt_length": 1},
        ]
        sequences, report = load(rows, None, context_size=2, packing=True, loss_on="response")
        assert [tokens.tolist() for tokens, _ in sequences] == [[11, 7]]  # [7 8] [9 10] count nowhere, [8] is alone
        assert counted(sequences) == [1, 0]
        assert report.notes == ("packing: 2 packed sequences in which nothing counts are left out",)


class TestSubset:
    ROWS = tuple({"input_ids": [7, 8, index % 15]} for index in range(2000))

    def test_random_rows_fixed_by_the_seed(self):
        first, report = load(self.ROWS, None, max_sequences=30)
        again, _ = load(self.ROWS, None, max_sequences=30)
        other, _ = load(self.ROWS, None, max_sequences=30, subset_seed=1)
        assert len(first) == report.n_rows == 30
        assert first.fingerprint() == again.fingerprint() != other.fingerprint()

    def test_rows_that_cannot_be_used_do_not_count(self):
        rows = [{"input_ids": [7, 8] if index % 10 == 0 else [7]} for index in range(1000)]
        sequences, report = load(rows, None, max_sequences=60)
        assert len(sequences) == 60
        assert report.n_rows > 500

    def test_fewer_than_asked(self):
        assert len(load(self.ROWS[:3], None, max_sequences=30)[0]) == 3

    def test_packed(self):
        sequences, _ = load(self.ROWS, None, max_sequences=4, packing=True, context_size=10)
        assert sequences.lengths.tolist() == [10] * 4


class TestSources:
    ROWS = ({"text": "a b c", "n": 1}, {"text": "d e", "n": 2})

    def check(self, path: Path | str, tokenizer: PreTrainedTokenizerFast, **options: Any) -> None:
        sequences, report = load_sequences(DataConfig(str(path), **options), tokenizer, D_VOCAB, N_CTX)
        assert [words(sequences, 0), words(sequences, 1)] == [["a", "b", "c"], ["d", "e"]]
        assert report.source == str(path)

    def write_jsonl(self, path: Path) -> Path:
        path.write_text("\n".join(json.dumps(row) for row in self.ROWS))
        return path

    def test_jsonl(self, tmp_path: Path, tokenizer: PreTrainedTokenizerFast):
        self.check(self.write_jsonl(tmp_path / "rows.jsonl"), tokenizer)

    def test_parquet(self, tmp_path: Path, tokenizer: PreTrainedTokenizerFast):
        datasets.Dataset.from_list(list(self.ROWS)).to_parquet(tmp_path / "rows.parquet")
        self.check(tmp_path / "rows.parquet", tokenizer)

    def test_text_file(self, tmp_path: Path, tokenizer: PreTrainedTokenizerFast):
        (tmp_path / "rows.txt").write_text("a b c\nd e\n")
        self.check(tmp_path / "rows.txt", tokenizer)

    def test_directory_of_files(self, tmp_path: Path, tokenizer: PreTrainedTokenizerFast):
        (tmp_path / "rows").mkdir()
        self.write_jsonl(tmp_path / "rows" / "train.jsonl")
        self.check(tmp_path / "rows", tokenizer)

    def test_saved_dataset(self, tmp_path: Path, tokenizer: PreTrainedTokenizerFast):
        rows = datasets.Dataset.from_list(list(self.ROWS))
        rows.save_to_disk(tmp_path / "one")
        self.check(tmp_path / "one", tokenizer)
        datasets.DatasetDict({"valid": rows}).save_to_disk(tmp_path / "splits")
        self.check(tmp_path / "splits", tokenizer, split="valid")
        with pytest.raises(DataError, match=r"data\.split must be one of valid\. Got train"):
            self.check(tmp_path / "splits", tokenizer)

    def test_dataset_in_memory(self, tokenizer: PreTrainedTokenizerFast):
        rows = datasets.Dataset.from_list(list(self.ROWS)).with_format("numpy")
        sequences, report = load(rows, tokenizer)
        assert words(sequences) == ["a", "b", "c"]
        assert report.source == "the given rows"

    def test_chat_dataset_in_memory(self, tokenizer: PreTrainedTokenizerFast):
        rows = datasets.Dataset.from_list([{"messages": CHAT, "domain": "maths"}])
        assert words(load(rows, tokenizer)[0]) == CHAT_WORDS

    def test_toy(self, tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch):
        from tc_adapters_lens import toy

        monkeypatch.setattr(toy, "TRAIN", self.write_jsonl(tmp_path / "rows.jsonl"), raising=False)
        self.check("toy", tokenizer)

    def error(self, tokenizer: PreTrainedTokenizerFast, **options: Any) -> str:
        with pytest.raises(DataError) as caught:
            load_sequences(DataConfig(**options), tokenizer, D_VOCAB, N_CTX)
        message = str(caught.value)
        assert "\n" not in message
        return message

    @pytest.mark.parametrize("path", ["/no/such/place", "./rows", "data/rows.jsonl", "rows.jsonl.gz"])
    def test_missing_path(self, tokenizer: PreTrainedTokenizerFast, path: str):
        assert f"must be a file, a directory or a hub dataset. Got {path}" in self.error(tokenizer, path=path)

    def test_hub_dataset_while_offline(self, tokenizer: PreTrainedTokenizerFast):
        message = self.error(tokenizer, path="nobody/nothing")
        assert message.startswith("cannot read the dataset nobody/nothing (split train): ")

    def test_unknown_kind_of_file(self, tmp_path: Path, tokenizer: PreTrainedTokenizerFast):
        (tmp_path / "rows.pkl").write_bytes(b"x")
        assert "must end in one of .jsonl, .json, .parquet" in self.error(tokenizer, path=str(tmp_path / "rows.pkl"))

    @pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
    @pytest.mark.parametrize("content", [b"", b"not a dataset\x00\xff"])
    def test_unreadable_file(self, tmp_path: Path, tokenizer: PreTrainedTokenizerFast, name: str, content: bytes):
        (tmp_path / name).write_bytes(content)
        message = self.error(tokenizer, path=str(tmp_path / name))
        assert name in message
        assert ("Got an empty file" in message) == (content == b"")

    def test_empty_directory(self, tmp_path: Path, tokenizer: PreTrainedTokenizerFast):
        assert "cannot read the dataset" in self.error(tokenizer, path=str(tmp_path))

    def test_unknown_split(self, tmp_path: Path, tokenizer: PreTrainedTokenizerFast):
        path = self.write_jsonl(tmp_path / "rows.jsonl")
        assert 'Unknown split "test"' in self.error(tokenizer, path=str(path), split="test")

    def test_empty(self, tokenizer: PreTrainedTokenizerFast):
        for rows in ([], datasets.Dataset.from_list([{"text": "a"}]).select([])):
            with pytest.raises(DataError, match=r"a dataset must have rows\. Got none in the given rows"):
                load(rows, tokenizer)

    def test_missing_column(self, tokenizer: PreTrainedTokenizerFast):
        with pytest.raises(DataError) as caught:
            load(self.ROWS, tokenizer, format="text", text_column="txt")
        assert str(caught.value) == (
            "rows must have a column txt. Got columns text, n; set data.text_column. Did you mean 'text'?"
        )
        with pytest.raises(
            DataError, match=r"column input_ids or messages or conversations or text\. Got columns body"
        ):
            load([{"body": "a b"}], tokenizer)


def test_report_is_logged_and_plain(tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, logger="tc_adapters_lens"):
        _, report = load([{"text": "a b c"}, {"text": ""}, {"text": None}], tokenizer)
    assert caplog.messages == report.lines()
    assert report.lines() == [
        "rows: 3 of the given rows read as text (column text), 1 used",
        "dropped: 2 rows: the text is empty (1, first: row 1); the text is not text (1, first: row 2)",
        "tokens: 3 in 1 sequences, longest 3; 3 count (loss_on: all), 0 do not",
        "packing: off, one document per sequence",
        "truncation: at 16 tokens, 0 documents cut (0 tokens lost)",
        "padding: on the right, to the longest sequence of each batch; it never counts",
    ]
    assert json.loads(json.dumps(report.to_dict()))["n_rows"] == 3
