"""The hold-out rule: by name alone, stated shares, blanks never."""

import hashlib

import numpy as np
import pytest

from embedding.config import EmbedConfig
from embedding.holdout import held_out
from recsys.config import from_config


def test_a_name_is_held_out_by_its_own_hash():
    names = [str(i) for i in range(2000)]
    expected = [int(hashlib.md5(n.encode()).hexdigest(), 16) % 10 < 3 for n in names]
    np.testing.assert_array_equal(held_out(names, 3), expected)
    np.testing.assert_array_equal(held_out(names[::-1], 3), expected[::-1])
    assert 0.27 < np.mean(expected) < 0.33


def test_blank_names_and_zero_tenths_hold_nothing_out():
    assert not held_out([None, "", None], 9).any()
    assert not held_out(["a", "b", "c"], 0).any()


def test_a_wrong_share_is_refused_for_both_encoders_at_once():
    given = {"encoder": {"image": {"held_out_tenths": 10}, "text": {"held_out_tenths": -1}}}
    with pytest.raises(ValueError) as raised:
        from_config(EmbedConfig, given | {"device": 3.5}, "")
    assert "device: 3.5 does not fit" in str(raised.value)
    assert "encoder.image.held_out_tenths=10: expected 0 (train on every" in str(raised.value)
    assert "encoder.text.held_out_tenths=-1: expected 0 (train on every" in str(raised.value)
