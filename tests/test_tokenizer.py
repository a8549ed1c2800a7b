"""Input layouts: markers, expansion, truncation, padding, skip list, spans."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from tokenizers.processors import TemplateProcessing

from colbert_fast.errors import CheckpointError
from colbert_fast.model import ModelConfig
from colbert_fast.model.tokenizer import Tokenizer
from tiny_models import IDS, make_tokenizer

CLS, SEP, MASK, PAD = (IDS[f"[{name}]"] for name in ("CLS", "SEP", "MASK", "PAD"))
Q, D = IDS["[unused0]"], IDS["[unused1]"]
CONFIG = ModelConfig(
    dim=16,
    query_length=8,
    document_length=10,
    query_prefix="[unused0]",
    document_prefix="[unused1]",
)


def make(**changes: object) -> Tokenizer:
    return Tokenizer(make_tokenizer(), replace(CONFIG, **changes))


def queries(tokenizer: Tokenizer, *texts: str) -> tuple[list, list, list]:
    batch = tokenizer.batch_queries(tokenizer.tokenize_queries(texts))
    return batch.input_ids.tolist(), batch.attention_mask.tolist(), batch.keep.tolist()


def documents(tokenizer: Tokenizer, *texts: str) -> tuple[list, list, list]:
    batch = tokenizer.batch_documents(tokenizer.tokenize_documents(texts))
    return batch.input_ids.tolist(), batch.attention_mask.tolist(), batch.keep.tolist()


def words(text: str) -> list[int]:
    return [IDS[word] for word in text.split()]


def test_query_is_expanded_with_masks_that_nobody_attends_to() -> None:
    ids, attention, keep = queries(make(), "Why blue?")
    assert ids == [[CLS, Q, *words("why blue ?"), SEP, MASK, MASK]]
    assert attention == [[1] * 6 + [0, 0]]
    assert keep == [[True] * 8]


def test_documents_that_are_cut_are_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = make(document_length=6)
    documents(tokenizer, "the sky")
    assert not caplog.messages
    documents(tokenizer, "the sky", "the sky is blue", "why")
    documents(tokenizer, "the sky is blue")
    [message] = caplog.messages
    assert message.startswith("1 of 3 texts fill the 6 tokens of document_length,")


def test_attending_to_expansion_tokens() -> None:
    _, attention, keep = queries(make(attend_to_expansion_tokens=True), "why")
    assert attention == [[1] * 8]
    assert keep == [[True] * 8]


def test_query_without_expansion_is_padded_to_the_longest() -> None:
    ids, attention, keep = queries(make(do_query_expansion=False), "why", "the sky")
    assert ids == [[CLS, Q, *words("why"), SEP, PAD], [CLS, Q, *words("the sky"), SEP]]
    assert attention == [[1, 1, 1, 1, 0], [1] * 5]
    assert keep == [[True] * 4 + [False], [True] * 5]


def test_long_query_is_cut_to_query_length_with_its_last_special_token() -> None:
    ids, attention, _ = queries(make(), "the sky is blue the sky is blue")
    assert ids == [[CLS, Q, *words("the sky is blue the"), SEP]]
    assert attention == [[1] * 8]


def test_without_a_marker_its_room_goes_to_the_text() -> None:
    ids, _, _ = queries(make(query_prefix=""), "the sky is blue the sky is blue")
    assert ids == [[CLS, *words("the sky is blue the sky"), SEP]]


def test_document_layout_and_truncation_ignore_what_the_tokenizer_file_says() -> None:
    # the tiny tokenizer has truncation and padding to 5 baked in
    ids, attention, keep = documents(make(), "the sky is blue the sky is blue the", "sky")
    assert ids[0] == [CLS, D, *words("the sky is blue the sky is"), SEP]
    assert ids[1] == [CLS, D, *words("sky"), SEP, *[PAD] * 6]
    assert attention[1] == [1] * 4 + [0] * 6
    assert keep == [[True] * 10, [True] * 4 + [False] * 6]


def test_punctuation_rows_of_documents_are_dropped_but_attended() -> None:
    ids, attention, keep = documents(make(), "sky, blue!")
    assert ids == [[CLS, D, *words("sky , blue !"), SEP]]
    assert attention == [[1] * 7]
    assert keep == [[True, True, True, False, True, False, True]]


def test_punctuation_rows_of_queries_stay() -> None:
    _, _, keep = queries(make(do_query_expansion=False), "sky!")
    assert keep == [[True] * 5]


def test_skip_list_of_words() -> None:
    _, _, keep = documents(make(skiplist_words=("the", "of")), "the sky!")
    assert keep == [[True, True, False, True, True, True]]


def test_unknown_skip_words_do_not_drop_unknown_tokens() -> None:
    _, _, keep = documents(make(skiplist_words=("nowhere", "the")), "zebra the")
    assert keep == [[True, True, True, False, True]]


def test_empty_and_all_punctuation_documents_keep_their_special_tokens() -> None:
    ids, _, keep = documents(make(), "", "!!")
    assert ids == [[CLS, D, SEP, PAD, PAD], [CLS, D, IDS["!"], IDS["!"], SEP]]
    assert keep == [[True] * 3 + [False] * 2, [True, True, False, False, True]]


def test_prompts_come_before_the_text_and_behind_the_marker() -> None:
    tokenizer = make(query_prompt="search ", document_prompt="index ")
    assert queries(tokenizer, "sky")[0][0][:5] == [CLS, Q, *words("search sky"), SEP]
    assert documents(tokenizer, "sky")[0] == [[CLS, D, *words("index sky"), SEP]]


def test_marker_that_is_not_in_the_vocabulary() -> None:
    with pytest.raises(CheckpointError, match=r"query_prefix: marker '\[Q\] '"):
        make(query_prefix="[Q] ")


def test_markers_may_be_added_tokens_with_a_space() -> None:
    tokenizer = Tokenizer(
        make_tokenizer(("[Q] ", "[D] ")),
        replace(CONFIG, query_prefix="[Q] ", document_prefix="[D] "),
    )
    assert documents(tokenizer, "sky")[0] == [[CLS, len(IDS) + 1, *words("sky"), SEP]]


def test_expansion_without_any_token_for_it() -> None:
    bare = make_tokenizer()
    bare.mask_token = bare.pad_token = None
    with pytest.raises(CheckpointError, match="do_query_expansion=False"):
        Tokenizer(bare, CONFIG)


def test_threads_share_a_tokenizer() -> None:
    tokenizer = make()
    text = "the sky is blue " * 5
    expected = tokenizer.tokenize_queries([text]), tokenizer.tokenize_documents([text])

    def both(_: int) -> bool:
        return expected == (
            tokenizer.tokenize_queries([text]),
            tokenizer.tokenize_documents([text]),
        )

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(both, range(200)))


def test_text_without_any_token() -> None:
    bare = make_tokenizer()
    bare.backend_tokenizer.post_processor = TemplateProcessing("$A", "$A $B", [])
    ids, _, keep = documents(Tokenizer(bare, replace(CONFIG, document_prefix="")), "")
    assert (ids, keep) == ([[PAD]], [[False]])


def test_query_tokens_name_every_row() -> None:
    expected = ["[CLS]", "[unused0]", "sky", "##s", "?", "[SEP]", "[MASK]", "[MASK]"]
    assert make().query_tokens("skys?") == expected


@pytest.mark.parametrize("prompt", ["", "index "])
def test_document_spans_match_the_kept_rows(prompt: str) -> None:
    tokenizer = make(document_prompt=prompt)
    text = "The skys, blue! zebra why why why why"
    spans = tokenizer.document_spans(text)
    _, _, keep = documents(tokenizer, text)
    assert len(spans) == np.sum(keep)
    found = [text[span[0] : span[1]] for span in spans if span]
    expected = ["The", "sky", "s", "blue", "zebra"]
    assert found == (expected[:4] if prompt else expected)
    assert spans[:2] == [None, None]
    assert spans[-1] is None


def test_bad_configurations() -> None:
    with pytest.raises(ValueError, match="dim: want a positive multiple of 8, got 12"):
        ModelConfig(dim=12)
    with pytest.raises(ValueError, match="query_length: want 4 to"):
        ModelConfig(dim=16, query_length=3)
    with pytest.raises(TypeError, match="document_length: want int, got str"):
        ModelConfig(dim=16, document_length="180")
    with pytest.raises(TypeError, match="skiplist_words: want a tuple of str"):
        ModelConfig(dim=16, skiplist_words=("a", 1))
