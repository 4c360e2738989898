"""Hidden items of users in memory."""

from recsys.serving.requests import RecommendRequest
from recsys.serving.server.hidden import MAX_PER_USER, HiddenItems
from recsys.serving.store import Like


def event(sequence: int, item: str, user: str = "u") -> Like:
    return Like(sequence, user, item, float(sequence))


def test_a_request_excludes_what_its_user_hid_beside_its_own_exclusions():
    hidden = HiddenItems()
    hidden.add([event(1, "a"), event(2, "b"), event(3, "c", user="other")])
    request = RecommendRequest(user="u", filters={"exclude_items": ["z"]})
    assert hidden.exclude(request).filters.exclude_items == ["z", "a", "b"]
    assert hidden.exclude(RecommendRequest()).filters.exclude_items == []
    assert hidden.of("nobody") == []


def test_a_like_takes_back_what_was_hidden_before_it_and_nothing_hidden_after():
    hidden = HiddenItems()
    hidden.add([event(1, "a"), event(4, "b")], [event(2, "a"), event(3, "b"), event(5, "c")])
    assert hidden.of("u") == ["b"]
    hidden.add([], [event(6, "b")])
    assert hidden.of("u") == []


def test_the_latest_hidden_items_of_a_user_are_kept():
    hidden = HiddenItems()
    hidden.add(event(n, f"i{n}") for n in range(MAX_PER_USER + 5))
    assert len(hidden.of("u")) == MAX_PER_USER
    assert hidden.of("u")[0] == "i5"
