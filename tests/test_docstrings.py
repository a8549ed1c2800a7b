"""Documentation is cut into named, distinct passages, and no source is imported for it."""

from __future__ import annotations

import sys

from colbert_fast.cli.docstrings import collect_passages, docstrings, split_text

SOURCE = '''
"""Module words."""
import not_installed_anywhere
class Shape:
    """Class words."""
    def area(self):
        """Method words."""
        def inner():
            """Not public."""
    def _hidden(self):
        """Not public."""
async def run():
    """Function words."""
def bare(): pass
'''


def test_docstrings_of_a_source():
    assert list(docstrings(SOURCE.encode(), "m")) == [
        ("m", "Module words."),
        ("m.Shape", "Class words."),
        ("m.run", "Function words."),
        ("m.Shape.area", "Method words."),
    ]


def test_passages_are_many_named_and_distinct():
    loaded = set(sys.modules)
    passages = list(collect_passages(2500))
    imported = {name.split(".")[0] for name in set(sys.modules) - loaded}
    assert imported <= {"pydoc_data", *(n for n in imported if n.startswith("_sysconfigdata"))}
    assert len(passages) == 2500
    ids = [passage["id"] for passage in passages]
    assert len(set(ids)) == len(ids)
    assert {"argparse", "dict.get", "topic:assert"} <= set(ids)
    assert any(name.startswith("topic:") and "#2" in name for name in ids)
    bodies = {" ".join(p["text"].removeprefix(f"{p['id']}: ").split()) for p in passages}
    assert len(bodies) == len(ids)
    assert list(collect_passages(50)) == passages[:50]


def test_split_text_keeps_paragraphs():
    paragraphs = [f"{i} {'word ' * 40}".strip() for i in range(5)]
    parts = split_text("\n\n".join(paragraphs), words=100)
    assert [len(part.split()) for part in parts] == [82, 82, 41]
    assert "\n\n".join(parts) == "\n\n".join(paragraphs)
    assert split_text("") == []
