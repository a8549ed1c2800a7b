"""Explanations add up to the score, point into the text, and are marked for a terminal."""

from __future__ import annotations

import numpy as np
import pytest

from colbert_fast.kernels import ops
from colbert_fast.search.explain import Match, explain, highlight, matched_words
from fakes import WordModel

TEXT = "The sky is blue, because air scatters blue light."


def test_scores_add_up_to_maxsim():
    model = WordModel()
    matches = explain(model, "why is the sky blue", TEXT)
    rows = model.encode_documents([TEXT])[0]
    query = model.encode_queries(["why is the sky blue"])[0]
    exact = ops.maxsim(query, rows, np.array([len(rows)], np.int32))[0]
    assert sum(match.score for match in matches) == pytest.approx(exact, abs=1e-5)


def test_each_query_token_meets_its_word():
    matches = {match.query_token: match for match in explain(WordModel(), "sky blue", TEXT)}
    assert matches["sky"] == Match("sky", "sky", (4, 7), pytest.approx(1.0))
    # "blue" stands in the text twice: the first of equals is taken.
    assert matches["blue"].span == (11, 15)


def test_marker_has_no_span():
    matches = explain(WordModel(), "[D]", "")
    assert [match.span for match in matches] == [None] * len(matches)
    assert {match.token for match in matches} == {""}


def test_matched_words_leave_out_masks_punctuation_and_weak_matches():
    matches = [
        Match("sky", "sky", (4, 7), 0.9),
        Match("[MASK]", "air", (25, 28), 0.9),
        Match(",", ",", (15, 16), 0.9),
        Match("why", "because", (17, 24), 0.2),
        Match("[Q]", "", None, 0.9),
    ]
    assert matched_words(TEXT, matches) == [(4, 7)]
    assert matched_words(TEXT, matches, min_score=0.1) == [(4, 7), (17, 24)]


def test_a_piece_stands_for_its_word_and_neighbours_merge():
    matches = [Match("scatter", "scat", (29, 33), 0.9), Match("##s", "ters", (33, 37), 0.9)]
    assert matched_words(TEXT, matches) == [(29, 37)]
    assert TEXT[29:37] == "scatters"


def test_highlight_marks_and_cleans():
    text = "a blue\x1b[31m sky"
    marked = highlight(text, [Match("blue", "blue", (2, 6), 1.0)], marks=("<", ">"))
    assert marked == "a <blue>\ufffd[31m sky"


def test_highlight_cuts_out_the_best_stretch():
    text = "word " * 100 + "needle in a haystack " + "word " * 100
    start = text.index("needle")
    match = Match("needle", "needle", (start, start + 6), 1.0)
    cut = highlight(text, [match], width=60, marks=("<", ">"))
    assert "<needle> in a haystack" in cut
    assert cut.startswith("…word")
    assert cut.endswith("word…")
    assert len(cut) <= 64


@pytest.mark.parametrize("text", ["", "short", "x" * 500, " " * 500, "é" * 500])
def test_highlight_takes_any_text(text):
    cut = highlight(text, [], width=40, marks=("", ""))
    assert len(cut) <= 41


def test_highlight_of_a_word_at_the_end():
    text = "x " * 200 + "end"
    cut = highlight(text, [Match("end", "end", (400, 403), 1.0)], width=30, marks=("<", ">"))
    assert cut.endswith("<end>")
