"""Every command does its work, and every mistake is one line and an exit code."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from colbert_fast.errors import MissingDependencyError
from colbert_fast.index import Index
from fakes import WordModel

testing = pytest.importorskip("typer.testing", reason="typer is not installed (extra cli)")
cli = pytest.importorskip("colbert_fast.cli.commands")
shell = pytest.importorskip("colbert_fast.cli.shell")

TEXTS = {
    "sky": "The sky is blue because air scatters blue light",
    "sea": "The sea is salt because rivers carry minerals into it",
    "fire": "Fire needs fuel and oxygen and heat",
    "ice": "Ice floats on water because it is less dense",
}


@pytest.fixture
def run(monkeypatch):
    """Run a command in this process with the model that has no weights."""
    for module in (cli, cli.measure, cli.write, shell):
        monkeypatch.setattr(module, "load_model", lambda *_, **__: WordModel())
    runner = testing.CliRunner()

    def invoke(*arguments, stdin=None):
        return runner.invoke(cli.app, [str(argument) for argument in arguments], input=stdin)

    return invoke


@pytest.fixture(autouse=True)
def logger_as_before():
    """Put back the level that a command sets for the whole process."""
    logger = logging.getLogger("colbert_fast")
    level = logger.level
    yield
    logger.setLevel(level)


@pytest.fixture
def corpus(tmp_path):
    """A corpus file with titles and metadata."""
    path = tmp_path / "corpus.jsonl"
    lines = [{"_id": i, "title": i, "text": t, "size": len(t)} for i, t in TEXTS.items()]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


@pytest.fixture
def built(tmp_path):
    """An index over the texts."""
    path = tmp_path / "texts.cf"
    documents = [{"id": i, "text": text} for i, text in TEXTS.items()]
    Index.build(path, documents, model=WordModel(), progress=False).close()
    return path


@pytest.fixture
def beir(corpus):
    """The corpus as a judged collection."""
    folder = corpus.parent
    (folder / "queries.jsonl").write_text(
        '{"_id": "q1", "text": "why is the sky blue"}\n{"_id": "q2", "text": "salt sea"}\n'
    )
    (folder / "qrels").mkdir()
    (folder / "qrels" / "test.tsv").write_text("q\td\ts\nq1\tsky\t1\nq2\tsea\t2\n")
    return folder


def refused(result, *, code=1):
    """The one line of an error."""
    assert result.exit_code == code
    assert "Traceback" not in result.output
    (line,) = result.stderr.splitlines()
    return line


def test_index_then_search(run, corpus, tmp_path):
    path = tmp_path / "new.cf"
    result = run("index", corpus, path)
    assert result.exit_code == 0, result.output
    assert "4 documents" in result.stdout
    result = run("search", path, "salt sea", "-k", "2", "--json", "--model", "words")
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert answer["query"] == "salt sea"
    first, second = answer["hits"]
    assert first["id"] == "sea"
    assert first["score"] > second["score"]
    assert first["text"].startswith("sea The sea")
    assert first["metadata"] == {"title": "sea", "size": len(TEXTS["sea"])}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], {"codec": "default", "nbits": 2, "documents": 4}),
        (["--codec", "float16"], {"codec": "float16"}),
        (["--codec", "plaid", "--nbits", "4"], {"codec": "plaid", "nbits": 4}),
        (["--limit", "2"], {"documents": 2}),
    ],
)
def test_index_options(run, corpus, tmp_path, options, expected):
    path = tmp_path / "new.cf"
    result = run("index", corpus, path, *options, "--num-centroids", "4", "--progress")
    assert result.exit_code == 0, result.output
    facts = json.loads(run("info", path, "--json").stdout)
    assert facts["centroids"] == 4
    assert expected.items() <= facts.items()


@pytest.mark.parametrize("command", ["index", "encode", "eval"])
def test_lengths_of_texts_reach_the_model(run, beir, tmp_path, monkeypatch, command):
    pytest.importorskip("ir_measures", reason="ir_measures is not installed (extra eval)")
    asked = []

    def load(*_, **lengths):
        asked.append(lengths)
        return WordModel()

    for module in (cli, cli.measure, cli.write):
        monkeypatch.setattr(module, "load_model", load)
    places = {"index": [tmp_path / "a.cf"], "encode": [tmp_path / "a.npz"], "eval": []}
    options = ("--document-length", "300", "--query-length", "20")
    result = run(command, beir, *places[command], *options)
    assert result.exit_code == 0, result.output
    assert asked == [{"query_length": 20, "document_length": 300}]
    if command == "eval":
        line = refused(run("eval", beir, "--index", tmp_path / "a.cf", "--query-length", "20"))
        assert "--query-length 20 needs --model" in line


def test_index_a_text_file(run, tmp_path):
    (tmp_path / "lines.txt").write_text("\n".join(TEXTS.values()))
    assert run("index", tmp_path / "lines.txt", tmp_path / "a.cf").exit_code == 0
    result = run("search", tmp_path / "a.cf", "oxygen", "-k", "1", "--json", "--model", "words")
    assert json.loads(result.stdout)["hits"][0]["id"] == 3


def test_search_reads_lines(run, built):
    result = run("search", built, "--model", "words", "-k", "1", stdin="salt sea\n\nfuel\n")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == "salt sea"
    assert lines[1].startswith("  1. sea  (")
    assert "rivers carry" in lines[2]
    assert lines[3] == "fuel"
    assert "\x1b" not in result.stdout


def test_json_holds_no_control_characters(run, tmp_path):
    document = {"_id": "a\x1b[2J\x9b2J", "text": "salt \x7f", "size": "\x9d0;pwn\x9c"}
    (tmp_path / "odd.jsonl").write_text(json.dumps(document), encoding="utf-8")
    assert run("index", tmp_path / "odd.jsonl", tmp_path / "a.cf").exit_code == 0
    result = run("search", tmp_path / "a.cf", "salt", "--model", "words", "--json")
    assert result.stdout.strip().isprintable()
    (hit,) = json.loads(result.stdout)["hits"]
    assert hit["id"] == document["_id"]
    assert hit["metadata"] == {"size": document["size"]}


@pytest.mark.parametrize(
    "mode",
    [
        ["--mode", "plaid"],
        ["--mode", "rerank"],
        ["--mode", "hybrid"],
        ["--exhaustive"],
        ["--nprobe", "2"],
    ],
)
def test_search_modes(run, built, mode):
    result = run("search", built, "ice floats", "--json", "--model", "words", *mode)
    assert json.loads(result.stdout)["hits"][0]["id"] == "ice"


def test_search_under_a_filter(run, corpus, tmp_path):
    path = tmp_path / "a.cf"
    assert run("index", corpus, path).exit_code == 0
    result = run(
        "search", path, "ice floats", "--json", "--model", "words", "--filter", "size < 40"
    )
    assert [hit["id"] for hit in json.loads(result.stdout)["hits"]] == ["fire"]
    line = refused(run("search", path, "ice", "--model", "words", "--filter", "colour = 1"))
    assert "no document has the key 'colour'; the keys are: 'title', 'size'" in line


def test_encode_then_index(run, corpus, tmp_path):
    result = run("encode", corpus, tmp_path / "e.npz")
    assert result.exit_code == 0, result.output
    with np.load(tmp_path / "e.npz") as file:
        assert file["embeddings"].dtype == np.float16
        assert file["embeddings"].shape == (file["doclens"].sum(), WordModel.dim)
        assert file["ids"].tolist() == list(TEXTS)
    result = run("index", tmp_path / "e.npz", tmp_path / "e.cf", "--model", "words")
    assert result.exit_code == 0, result.output
    with Index.open(tmp_path / "e.cf") as opened:
        assert list(opened.ids) == list(TEXTS)


def test_encode_queries(run, corpus, tmp_path):
    result = run("encode", corpus, tmp_path / "q.npz", "--queries")
    assert result.exit_code == 0, result.output
    rows = [
        len(rows) for rows in WordModel().encode_queries([f"{i} {t}" for i, t in TEXTS.items()])
    ]
    with np.load(tmp_path / "q.npz") as file:
        assert file["doclens"].tolist() == rows


def test_eval_builds_its_index(run, beir, tmp_path):
    pytest.importorskip("ir_measures", reason="ir_measures is not installed (extra eval)")
    result = run("eval", beir, "--run", tmp_path / "out.trec", "--json")
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout)
    assert values["queries"] == 2
    assert values["nDCG@10"] == values["MRR@10"] == values["Recall@100"] == 1.0
    lines = (tmp_path / "out.trec").read_text().splitlines()
    assert lines[0].split()[:4] == ["q1", "Q0", "sky", "1"]
    assert len(lines) == 8


def test_eval_of_an_index(run, beir, built):
    pytest.importorskip("ir_measures", reason="ir_measures is not installed (extra eval)")
    options = ("--measure", "P@1", "--exhaustive", "--model", "words")
    result = run("eval", beir, "--index", built, *options)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[0].split() == ["P@1", "1.0000"]
    assert result.stdout.splitlines()[1].startswith("2 queries, ")


@pytest.mark.parametrize("command", ["search", "add", "tune", "bench", "eval", "convert"])
def test_where_to_encode_needs_a_model(run, beir, built, tmp_path, command):
    arguments = {
        "search": (built, "sky"),
        "add": (built, tmp_path / "corpus.jsonl"),
        "eval": (beir, "--index", built),
        "convert": (built, tmp_path / "other.cf"),
    }.get(command, (built,))
    line = refused(run(command, *arguments, "--device", "cuda"))
    assert "--device cuda needs --model" in line
    if command != "convert":
        line = refused(run(command, *arguments, "--backend", "openvino"))
        assert "--backend openvino needs --model" in line


def test_eval_with_the_model_of_the_index(run, beir, built, monkeypatch):
    pytest.importorskip("ir_measures", reason="ir_measures is not installed (extra eval)")
    monkeypatch.setattr(shell, "load_model", None)
    monkeypatch.setattr(cli.measure, "load_model", None)
    monkeypatch.setattr("colbert_fast.reader.model_of_index", lambda _: WordModel())
    result = run("eval", beir, "--index", built, "--measure", "P@1")
    assert result.stdout.splitlines()[0].split() == ["P@1", "1.0000"]


def test_bench_leaves_own_documents_out_after_deletions(tmp_path):
    from colbert_fast.cli.curves import bench_queries

    rows = np.eye(32, dtype=np.float32)[:, None]
    with Index.build(tmp_path / "a.cf", list(rows), progress=False) as index:
        index.delete(range(30))
        asked = bench_queries(index, None, 20, 0)
        assert set().union(*asked.own) == {30, 31}
        index.delete([30, 31])
        with pytest.raises(ValueError, match="the index is empty"):
            bench_queries(index, None, 20, 0)


def test_eval_takes_the_options_of_search(run, beir):
    pytest.importorskip("ir_measures", reason="ir_measures is not installed (extra eval)")
    options = ("--measure", "Recall@10", "-k", "10", "--json")
    found = json.loads(run("eval", beir, *options, "--filter", "title = 'sea'").stdout)
    assert found["Recall@10"] == 0.5
    hybrid = ("--mode", "hybrid", "--bm25-weight")
    assert json.loads(run("eval", beir, *options, *hybrid, "1").stdout)["Recall@10"] == 1
    assert "bm25_weight must be from 0 to 1" in refused(run("eval", beir, *options, *hybrid, "2"))
    assert "--recall needs --index" in refused(run("eval", beir, *options, "--recall", "0.9"))


def test_search_for_the_queries_of_a_file(run, built, tmp_path):
    path, out = tmp_path / "queries.tsv", tmp_path / "out.run"
    path.write_text("q1\tsalt sea\nq2\toxygen\n")
    asked = ("search", built, "--model", "words", "-k", "1", "--queries", path)
    assert [line for line in run(*asked).stdout.splitlines() if line[0] != " "] == [
        "salt sea",
        "oxygen",
    ]
    result = run(*asked, "--run", out)
    assert result.stdout == f"{out}: 2 rankings\n"
    assert [line.split()[:4] for line in out.read_text().splitlines()] == [
        ["q1", "Q0", "sea", "1"],
        ["q2", "Q0", "fire", "1"],
    ]
    assert "no such folder" in refused(run(*asked, "--run", tmp_path / "no" / "out.run"))
    line = refused(run("search", built, "salt", "--queries", path))
    assert "either a query after the index or --queries" in line
    path.write_text("q1\tsalt sea\nq1\toxygen\n")
    assert "the id 'q1' comes a second time" in refused(run(*asked))


def test_tune_then_search_for_a_recall(run, built):
    asked = ("search", built, "salt sea", "--recall", "0.9", "--model", "words", "--json")
    assert "colbert-fast tune INDEX" in refused(run(*asked))
    result = run("tune", built, "--k", "2", "--num-queries", "5")
    assert result.exit_code == 0, result.output
    assert "    2      exhaustive  1.0000" in result.stdout
    assert "recall=0.99" in result.stdout
    assert json.loads(run(*asked, "-k", "1").stdout)["hits"][0]["id"] == "sea"
    assert "the index is tuned for k up to 2" in refused(run(*asked, "-k", "3"))
    line = refused(run(*asked, "--nprobe", "3", "--exhaustive"))
    assert "leave out nprobe and exhaustive" in line


def test_tune_with_queries_from_a_file(run, built, tmp_path):
    (tmp_path / "queries.txt").write_text("salt sea\nblue\nfuel\n")
    options = ("--k", "2", "--num-queries", "2", "--model", "words")
    result = run("tune", built, "--queries", tmp_path / "queries.txt", *options)
    assert "by 2 queries given" in result.stdout


@pytest.mark.parametrize("kind", ["txt", "npz", "npy", None])
def test_bench(run, built, tmp_path, kind):
    options = []
    if kind is not None:
        options = ["--queries", tmp_path / f"queries.{kind}"]
    if kind == "txt":
        options[1].write_text("salt sea\nblue\nfuel\n")
    elif kind == "npz":
        (tmp_path / "queries.txt").write_text("salt sea\nblue\nfuel\n")
        run("encode", tmp_path / "queries.txt", options[1], "--queries")
    elif kind == "npy":
        np.save(options[1], np.stack(WordModel().encode_queries(["salt sea", "blue sky", "a b"])))
    command = ("bench", built, "--k", "1,2", "--num-queries", "3", "--model", "words", *options)
    report = json.loads(run(*command, "--json").stdout)
    assert report["title"].startswith("4 documents, ")
    assert {row["k"] for row in report["rows"]} == {1, 2}
    assert {row["way"] for row in report["rows"]} == {"default", "plaid", "exhaustive"}
    for row in report["rows"]:
        assert 0 <= row["recall"] <= 1
        assert 0 < row["p50"] <= row["p95"]
        assert row["qps"] > 0
        if row["way"] == "exhaustive":
            assert row["recall"] == 1
            assert row["nprobe"] is None
    lines = run(*command).stdout.splitlines()
    assert lines[3].split() == [
        "k", "search", "nprobe", "ndocs", "recall", "p50", "ms", "p95", "ms", "batch", "QPS",
    ]  # fmt: skip
    assert len(lines) == 4 + len(report["rows"])


def test_bench_repeats_what_it_times(run, built, monkeypatch):
    calls = Counter()
    search = Index.search

    def counting(self, query, k, **options):
        calls[(len(query) == 5, *options.values())] += 1
        return search(self, query, k, **options)

    monkeypatch.setattr(Index, "search", counting)
    result = run("bench", built, "--k", "1", "--num-queries", "5")
    assert result.exit_code == 0, result.output
    assert calls[True, 4, 1024, "default"] == 3 + 1  # and one whose hits are looked at
    assert calls[False, 4, 1024, "default"] == 3 * 5


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_bench_draws(run, built, tmp_path, suffix):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra bench)")
    run("tune", built, "--k", "5", "--num-queries", "3")
    out = tmp_path / f"curve.{suffix}"
    result = run("bench", built, "--k", "1,2", "--num-queries", "3", "--plot", out)
    assert result.exit_code == 0, result.output
    assert "recall=0.95" in result.stdout
    contents = out.read_bytes()
    if suffix == "png":
        assert contents.startswith(b"\x89PNG")
    else:
        assert b"recall@2 against exhaustive search" in contents or b"<path" in contents


def test_bench_says_that_matplotlib_is_missing(run, built, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    line = refused(run("bench", built, "--plot", tmp_path / "curve.png"))
    assert 'plots need the package matplotlib: pip install "colbert-fast[bench]"' in line
    assert run("bench", built, "--k", "1", "--num-queries", "2").exit_code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--plot", "curve.gif"], "--plot must end in one of .png, .svg, .pdf, got curve.gif"),
        (["--plot", "no/folder/curve.png"], "no such folder"),
        (["--k", "ten"], "--k: expected integers with commas, as in 10,100, got 'ten'"),
        (["--k", "0"], "k must be at least 1, got 0"),
        (["--queries", "flat.npy"], "flat.npy: expected shape (n, tokens, dim), got (3, 32)"),
        (["--queries", "empty.txt"], "queries: there are none"),
    ],
)
def test_bench_mistakes(run, built, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    np.save("flat.npy", np.ones((3, 32), np.float32))
    (tmp_path / "empty.txt").write_text("\n")
    assert message in refused(run("bench", built, *options))


def test_info_of_the_machine(run):
    facts = json.loads(run("info", "--json").stdout)
    assert facts["threads"] >= 1
    assert facts["isa"] in facts["available_isas"]
    assert f"isa{' ' * 4}" in run("info").stdout


def test_info_rounds_for_people_only(run, built):
    ratio = json.loads(run("info", built, "--json").stdout)["bytes_per_token"]
    assert ratio != round(ratio, 3)
    assert f"bytes_per_token         {round(ratio, 3)}\n" in run("info", built).stdout


def test_verify(run, built):
    assert run("verify", built).stdout == f"{built}: every file matches its checksums\n"
    [damaged] = built.glob("codec-*/centroids.npy")
    contents = bytearray(damaged.read_bytes())
    contents[-1] ^= 1
    damaged.write_bytes(contents)
    assert "centroids.npy" in refused(run("verify", built))


def test_index_refuses_to_replace(run, corpus, built):
    line = refused(run("index", corpus, built))
    assert str(built) in line
    assert "pass --overwrite" in line
    assert run("index", corpus, built, "--overwrite").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["index", "missing.jsonl", "a.cf"], "missing.jsonl: No such file or directory"),
        (["index", "empty.txt", "a.cf"], "empty.txt: there are no documents in it"),
        (["index", "what.csv", "a.cf"], "cannot tell the format"),
        (["index", "bad.jsonl", "a.cf"], "bad.jsonl:2: not JSON"),
        (["index", "good.txt", "a.cf", "--nbits", "5"], "nbits"),
        (["search", "missing.cf", "query"], "missing.cf"),
        (["info", "missing.cf"], "missing.cf"),
        (["verify", "missing.cf"], "missing.cf"),
        (["encode", "good.txt", "out.bin"], "OUT must end in .npz"),
        (["encode", "good.txt", "no/folder/out.npz"], "no such folder"),
        (["eval", "missing"], "no corpus.jsonl"),
        (["eval", "missing", "--run", "no/folder/x.run"], "no such folder"),
        (["eval", "missing", "-k", "5"], "`k` must be at least 10"),
    ],
)
def test_mistakes(run, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "what.csv").write_text("a,b\n")
    (tmp_path / "good.txt").write_text("one\ntwo\n")
    (tmp_path / "bad.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    line = refused(run(*arguments))
    assert line.startswith("colbert-fast: ")
    assert message in line
    assert not (tmp_path / "a.cf").exists()


def test_search_mistakes(run, built):
    assert "no query" in refused(run("search", built, "--model", "words", stdin="\n"))
    line = refused(run("search", built, "x", "--model", "words", "--ndocs", "3", "-k", "4"))
    assert "ndocs must be at least k=4" in line


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(28, "No space left on device", "a.cf"), 1, "a.cf: No space left on device"),
        (MissingDependencyError("needs torch;\n  run pip"), 1, "needs torch; run pip"),
        (RuntimeError("odd"), 1, "unexpected RuntimeError: odd; please report"),
        (ValueError(), 1, "ValueError"),
        (ValueError("id \x1b[2J"), 1, "id \ufffd[2J"),
    ],
)
def test_every_error_is_one_line(run, corpus, tmp_path, monkeypatch, error, code, message):
    def fail(*_arguments, **_options):
        raise error

    monkeypatch.setattr(Index, "build", fail)
    assert message in refused(run("index", corpus, tmp_path / "a.cf"), code=code)


def test_debug_lets_errors_through(run, tmp_path):
    result = run("--debug", "info", tmp_path / "missing.cf")
    assert result.exit_code == 1
    assert isinstance(result.exception, ValueError)


def test_usage_errors_name_the_option(run):
    result = run("search", "a.cf", "query", "--mode", "other")
    assert result.exit_code == 2
    assert "--mode" in result.stderr


def test_module_runs_without_importing_torch():
    code = (
        "import sys; sys.argv = ['colbert-fast', 'info'];"
        "import atexit; atexit.register(lambda: print('torch' in sys.modules));"
        "from colbert_fast.__main__ import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "False"


def test_console_script_says_what_is_missing():
    code = "import sys; sys.modules['typer'] = None;from colbert_fast.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert 'pip install "colbert-fast[cli]"' in done.stderr


def test_commands_say_that_the_encoder_is_missing(tmp_path):
    (tmp_path / "a.txt").write_text("one line\n")
    code = (
        "import sys; sys.modules['torch'] = None; sys.argv = ['colbert-fast', *sys.argv[1:]];"
        "from colbert_fast.__main__ import main; main()"
    )
    command = [sys.executable, "-c", code, "index", str(tmp_path / "a.txt"), str(tmp_path / "a.cf")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert 'torch: pip install "colbert-fast[encode]"' in done.stderr


def test_help_tells_of_threads(run):
    assert "COLBERT_FAST_NUM_THREADS" in run("--help").stdout


def test_help_tells_what_ndocs_does(run):
    said = " ".join(run("search", "--help").stdout.split())
    assert "scores them in int8 and exactly where that leaves a chance" in said
    assert "max(ndocs / 4, k) exactly" in said


def test_module_is_a_program(tmp_path):
    command = [sys.executable, "-m", "colbert_fast", "info", str(tmp_path / "no.cf")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("colbert-fast: ")
    assert "Traceback" not in done.stderr
