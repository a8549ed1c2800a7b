"""Random BERT checkpoints of a few kilobytes, written in every layout that the library reads."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

HIDDEN, DIM = 32, 16
# Settings of a Stanford checkpoint.
METADATA = {
    "query_token_id": "[unused0]",
    "doc_token_id": "[unused1]",
    "query_maxlen": 12,
    "doc_maxlen": 20,
    "dim": DIM,
    "attend_to_mask_tokens": False,
    "mask_punctuation": True,
    "similarity": "cosine",
}
TEXT = "the sky is blue why plaid late interaction search engine fast index color of"
WORDS = TEXT.split()
SPECIAL = ["[PAD]", "[unused0]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY = [*SPECIAL, *string.punctuation, *WORDS, "##s", "##er"]
IDS = {token: index for index, token in enumerate(VOCABULARY)}


def make_tokenizer(extra: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """A lower-casing WordPiece tokenizer with a baked-in padding and truncation, as MiniLM's."""
    inner = Tokenizer(models.WordPiece(IDS, unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer()
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.post_processor = processors.BertProcessing(
        ("[SEP]", IDS["[SEP]"]), ("[CLS]", IDS["[CLS]"])
    )
    inner.enable_truncation(5)
    inner.enable_padding(length=5)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )
    tokenizer.add_tokens(list(extra))
    return tokenizer


def make_backbone(seed: int = 0, size: int = len(VOCABULARY)) -> BertModel:
    """Two layers; weights large enough that no two tokens look alike."""
    config = BertConfig(
        vocab_size=size,
        hidden_size=HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return BertModel(config).eval()


def make_matrix(rows: int = DIM, columns: int = HIDDEN, seed: int = 1) -> torch.Tensor:
    """A random projection."""
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def write_json(path: Path, value: object) -> None:
    """Write one JSON file, and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def write_plain(
    folder: Path, *, extra: tuple[str, ...] = (), backbone: BertModel | None = None
) -> Path:
    """A plain Hugging Face encoder."""
    (backbone or make_backbone(size=len(VOCABULARY) + len(extra))).save_pretrained(folder)
    make_tokenizer(extra).save_pretrained(folder)
    return folder


def write_stanford(
    folder: Path,
    *,
    metadata: dict[str, Any] | None = None,
    weights: dict[str, torch.Tensor] | None = None,
    pickle: bool = False,
) -> Path:
    """What ColBERT's own trainer saves: `bert.*` and `linear.weight` in one file."""
    backbone = make_backbone()
    make_tokenizer().save_pretrained(folder)
    settings = {**backbone.config.to_dict(), "architectures": ["HF_ColBERT"]}
    # Some transformers write down which attention this process used; trainers' files have none.
    public = {key: value for key, value in settings.items() if not key.startswith("_")}
    write_json(folder / "config.json", public)
    if weights is None:
        weights = stanford_weights()
    if pickle:
        torch.save(weights, folder / "pytorch_model.bin")
    else:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    if metadata is not None:
        write_json(folder / "artifact.metadata", metadata)
    return folder


def stanford_weights() -> dict[str, torch.Tensor]:
    """The tensors of `write_stanford`, without a pooler, as real ones may be."""
    own = make_backbone().state_dict()
    kept = {f"bert.{key}": value for key, value in own.items() if not key.startswith("pooler")}
    return {**kept, "linear.weight": make_matrix()}


def write_dense(folder: Path, tensors: dict[str, torch.Tensor], **settings: Any) -> None:
    """One N_Dense folder."""
    rows, columns = tensors["linear.weight"].shape
    base = {
        "in_features": columns,
        "out_features": rows,
        "bias": "linear.bias" in tensors,
        "activation_function": "torch.nn.modules.linear.Identity",
    }
    write_json(folder / "config.json", {**base, **settings})
    save_file(tensors, folder / "model.safetensors")


def write_modules(folder: Path, *kinds: str) -> None:
    """modules.json of a Transformer at the root and the given classes in N_Name folders."""
    names = [("", "sentence_transformers.models.Transformer")]
    names += [(f"{n}_{kind.rsplit('.', 1)[-1]}", kind) for n, kind in enumerate(kinds, start=1)]
    entries = [
        {"idx": n, "name": str(n), "path": path, "type": kind}
        for n, (path, kind) in enumerate(names)
    ]
    write_json(folder / "modules.json", entries)


def write_pylate(folder: Path, *, extra: tuple[str, ...] = (), **settings: Any) -> Path:
    """One Dense behind the encoder, and the given keys of config_sentence_transformers.json."""
    write_plain(folder, extra=extra)
    write_modules(folder, "pylate.models.Dense.Dense")
    write_dense(folder / "1_Dense", {"linear.weight": make_matrix()})
    write_json(folder / "config_sentence_transformers.json", {"model_type": "ColBERT", **settings})
    return folder


@torch.inference_mode()
def plain_rows(
    ids: list[int], attention: list[int], *, backbone: BertModel | None = None
) -> torch.Tensor:
    """Unit rows by plain torch: the encoder above, the matrix above, L2 normalisation."""
    model = backbone or make_backbone()
    hidden = model(torch.tensor([ids]), attention_mask=torch.tensor([attention])).last_hidden_state
    rows = hidden[0] @ make_matrix().T
    return rows / rows.norm(dim=1, keepdim=True)
