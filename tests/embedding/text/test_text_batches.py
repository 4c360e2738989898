"""Texts are batched by their tokens, each exactly once, and come out as from Sentence-Transformers."""

import numpy as np
import pytest
import torch

from embedding.text.encoder import TextEncoder, build_scratch_encoder

WORDS = ["castle", "fox", "river", "城の狐", "画", "light"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return build_scratch_encoder(
        WORDS,
        tmp_path_factory.mktemp("model"),
        vocabulary_size=100,
        hidden_dim=32,
        num_layers=1,
        max_tokens=12,
        seed=0,
        device=torch.device("cpu"),
    )


@pytest.fixture
def texts(rng):
    return [" ".join(rng.choice(WORDS, size=rng.integers(1, 20))) for _ in range(41)]


def test_batches_hold_every_text_once_and_grow_shorter(model, texts):
    encoder = TextEncoder(model, 8)
    batches = encoder.batches(texts)
    assert sorted(np.concatenate(batches).tolist()) == list(range(41))
    assert [len(batch) for batch in batches] == [8, 8, 8, 8, 8, 1]
    # By tokens: a character is one in Japanese, where a word is one in English.
    count = [[len(model.tokenizer(texts[i])["input_ids"]) for i in batch] for batch in batches]
    flat = [min(n, 12) for lengths in count for n in lengths]
    assert flat == sorted(flat, reverse=True) and flat[0] == 12 > flat[-1]
    widths = [encoder.tokens([texts[i] for i in at])["input_ids"].shape[1] for at in batches]
    assert widths == [min(max(lengths), 12) for lengths in count]


def test_vectors_are_those_of_sentence_transformers(model, texts):
    expected = model.encode(texts, normalize_embeddings=True, show_progress_bar=False)
    for batch_size in (1, 8, 64):
        np.testing.assert_allclose(TextEncoder(model, batch_size).raw(texts), expected, atol=1e-5)


def test_a_default_prompt_precedes_every_text(model, texts):
    plain = TextEncoder(model, 8).raw(texts)
    model.prompts, model.default_prompt_name = {"item": "fox "}, "item"
    try:
        prompted = TextEncoder(model, 8).raw(texts)
        expected = model.encode(texts, normalize_embeddings=True, show_progress_bar=False)
    finally:
        model.default_prompt_name = None
    np.testing.assert_allclose(prompted, expected, atol=1e-5)
    assert np.abs(prompted - plain).max() > 1e-3
