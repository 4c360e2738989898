"""Vocabulary of a WordPiece tokenizer: trained on a data set's own texts, or extended by its characters.

Called by embedding/text/encoder.py and embedding/text/fine_tuning.py.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch

import embedding.text.libraries  # noqa: F401  isort: skip (before the libraries)
from sentence_transformers import SentenceTransformer
from tokenizers import (
    AddedToken,
    Tokenizer,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def word_pieces(texts: Sequence[str], vocabulary_size: int) -> Tokenizer:
    """Return a WordPiece tokenizer trained on `texts`, the same one for the same texts.

    The library numbers the characters within words in the order of a hash table and breaks ties
    between merges by these numbers: equal runs learned different tokens. Naming them beforehand
    fixes the numbers.
    """
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(strip_accents=False, lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    within: set[str] = set()
    for text in texts:
        normal = tokenizer.normalizer.normalize_str(text)
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normal):
            within.update(word[1:])
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[*SPECIAL, *(f"##{character}" for character in sorted(within))],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    learned = sorted(set(tokenizer.get_vocab()) - set(SPECIAL))
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *learned])}
    # A tokenizer of its own, in which those characters are no special tokens.
    fresh = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    fresh.normalizer, fresh.pre_tokenizer = tokenizer.normalizer, tokenizer.pre_tokenizer
    return fresh


def extend_vocabulary(
    model: SentenceTransformer, texts: Sequence[str], most: int, seed: int
) -> list[str]:
    """Give the tokenizer characters of `texts` that it does not know; return them, frequent first.

    A WordPiece tokenizer reads a word with an unknown character as [UNK], all such words alike. A
    character seen once is left unknown: nothing can be learned of it. New rows of the embedding
    table are drawn from the distribution of the old ones.
    """
    tokenizer = model.tokenizer
    known = set(tokenizer.get_vocab())
    backend = tokenizer.backend_tokenizer
    counts: Counter[str] = Counter()
    for text in texts:
        normal = backend.normalizer.normalize_str(text) if backend.normalizer else text
        counts.update(set(normal) - known)
    unknown = [
        (character, count)
        for character, count in counts.items()
        # A character that has no token of its own may still stand within one.
        if count > 1
        and tokenizer.unk_token_id in tokenizer.convert_tokens_to_ids(tokenizer.tokenize(character))
    ]
    unknown.sort(key=lambda entry: (-entry[1], entry[0]))
    added = [character for character, _ in unknown[:most]]
    if added:
        tokenizer.add_tokens([AddedToken(c, normalized=True, special=False) for c in added])
        torch.manual_seed(seed)
        bert: Any = model[0].auto_model
        bert.resize_token_embeddings(len(tokenizer))
    return added
