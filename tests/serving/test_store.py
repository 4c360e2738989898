"""The event store, over SQLite and over a real PostgreSQL."""

import threading
import time
from contextlib import closing

import pytest
import sqlalchemy as sa

from recsys.errors import UserError
from recsys.serving.store import Store, StoredEvent, StoreError
from tests.serving.postgres import postgres


@pytest.fixture(
    scope="module", params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)]
)
def database(request, tmp_path_factory):
    """Return a function of a name: the place of a new, empty store."""
    folder = tmp_path_factory.mktemp("stores")
    if request.param == "sqlite":
        yield lambda name: str(folder / f"{name}.db")
        return
    with postgres() as url:

        def create(name: str) -> str:
            import psycopg

            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute(f"CREATE DATABASE {name}")
            return url.replace("/postgres?", f"/{name}?")

        yield create


@pytest.fixture
def store(database, request):
    opened = Store.open(database(request.node.originalname[-60:]))
    yield opened
    opened.close()


def event(id: str, user: str = "u", item: str = "i", kind: str = "liked", time: float = 1.0):
    return StoredEvent(id=id, user=user, item=item, kind=kind, time=time)


def add(store: Store, *events: StoredEvent) -> int:
    with store.writing() as transaction:
        return transaction.add_events(events)


def test_an_event_of_a_known_id_is_not_stored_again(store):
    assert add(store, event("a"), event("b")) == 2
    assert add(store, event("a", item="another"), event("c")) == 1
    stored = [e for page in store.events_between(0, 10) for e in page]
    assert [(e.id, e.item) for e in stored] == [("a", "i"), ("b", "i"), ("c", "i")]


def test_an_id_twice_in_one_request_is_stored_once(store):
    assert add(store, event("a"), event("a")) == 1


def test_likes_come_in_the_order_of_their_numbers(store):
    add(store, event("a", item="x"), event("b", kind="shown"), event("c", item="y", time=5.0))
    likes = store.likes_after(0)
    assert [(like.user, like.item, like.time) for like in likes] == [
        ("u", "x", 1.0),
        ("u", "y", 5.0),
    ]
    assert store.likes_after(likes[0].sequence) == likes[1:]
    assert store.likes_after(0, since=1.0) == likes[1:]
    assert store.last_event() == likes[1].sequence


def test_a_period_includes_its_start_and_excludes_its_end(store):
    add(store, *[event(str(n), time=float(n)) for n in range(5)])
    pages = list(store.events_between(1, 3))
    assert [e.time for page in pages for e in page] == [1.0, 2.0]
    assert list(store.events_between(7, 9)) == []


def test_texts_of_all_scripts_and_whole_events_come_back(store):
    whole = StoredEvent(
        id="\u753b/1",
        user="\u732b",
        item="caf\u00e9 'x'",
        kind="shown",
        time=1.25,
        request_id="r",
        position=3,
        propensity=0.125,
    )
    add(store, whole)
    assert list(store.events_between(0, 2)) == [[whole]]


def test_an_added_item_of_a_known_id_stays_as_it_was(store):
    with store.writing() as t:
        assert t.add_item(id="n1", version="v", request=b"{}", encoded=b"\0\1")
    with store.writing() as t:
        assert not t.add_item(id="n1", version="w", request=b"", encoded=b"")
        assert t.add_item(id="n2", version="w", request=b"", encoded=b"")
    first, second = store.items_after()
    assert (first.id, first.version, first.request, first.encoded) == ("n1", "v", b"{}", b"\0\1")
    assert store.items_after(first.sequence) == [second]


def test_what_a_failed_transaction_wrote_is_gone(store):
    with pytest.raises(RuntimeError), store.writing() as transaction:
        transaction.add_events([event("a")])
        raise RuntimeError
    assert store.last_event() == 0


def test_a_reader_of_numbers_misses_no_like_of_two_writing_hosts(database):
    place = database("two_hosts")
    Store.open(place).close()

    def write(host: str) -> None:
        store = Store.open(place)
        for n in range(40):
            add(store, event(f"{host}{n}", user=host, item=str(n)))
        store.close()

    writers = [threading.Thread(target=write, args=[host]) for host in "abc"]
    reader, seen = Store.open(place), []
    for writer in writers:
        writer.start()
    while True:
        is_over = not any(writer.is_alive() for writer in writers)
        seen += reader.likes_after(seen[-1].sequence if seen else 0)
        if is_over:
            break
        time.sleep(0.001)
    reader.close()
    assert sorted((like.user, int(like.item)) for like in seen) == [
        (host, n) for host in "abc" for n in range(40)
    ]


def test_a_place_that_cannot_be_a_store_is_named(tmp_path):
    with pytest.raises(UserError, match="no folder .*nowhere"):
        Store.open(tmp_path / "nowhere" / "events.db")
    with pytest.raises(UserError, match="expected the path of an SQLite file, or postgresql"):
        Store.open("mysql://me@host/name")
    with pytest.raises(UserError, match="a URL that cannot be read"):
        Store.open("://")


def test_a_file_that_is_no_database_is_named(tmp_path):
    (tmp_path / "events.db").write_text("this is text, and a good deal of it\n" * 100)
    with pytest.raises(StoreError, match=r"events.db.*not a database"):
        Store.open(tmp_path / "events.db")


def test_a_password_is_not_shown(tmp_path):
    with pytest.raises(StoreError) as failed:
        Store.open(f"postgresql://me:secret@/name?host={tmp_path}")
    assert "secret" not in str(failed.value)


def test_events_of_an_earlier_version_have_no_propensity_and_new_ones_do(tmp_path):
    place = tmp_path / "events.db"
    store = Store.open(place)
    with store._engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE events DROP COLUMN propensity"))
        connection.execute(
            sa.text(
                "INSERT INTO events (id, user, item, kind, time) VALUES ('old', 'u', 'a', 'shown', 1)"
            )
        )
    store.close()
    opened = [Store.open(place) for _ in range(2)]
    add(opened[1], StoredEvent(id="new", user="u", item="b", kind="shown", time=2, propensity=0.5))
    (events,) = opened[0].events_between(0, 3)
    assert [(e.id, e.propensity) for e in events] == [("old", None), ("new", 0.5)]


def test_hidden_items_follow_their_numbers_in_stores_of_earlier_versions_too(database):
    place = database("hidden")
    with closing(Store.open(place)) as store:
        add(store, event("a"), event("b", item="x", kind="hidden"), event("c", kind="shown"))
        with store._engine.begin() as connection:
            connection.exec_driver_sql("DROP INDEX events_hidden")
    with closing(Store.open(place)) as store:
        add(store, event("d", item="y", kind="hidden"))
        found = store.hidden_after(0)
        assert [(like.user, like.item) for like in found] == [("u", "x"), ("u", "y")]
        assert [like.item for like in store.hidden_after(found[0].sequence)] == ["y"]
        names = {index["name"] for index in sa.inspect(store._engine).get_indexes("events")}
        assert "events_hidden" in names


def test_an_added_item_is_found_by_its_id(store):
    with store.writing() as transaction:
        transaction.add_item(id="n", version="v", request=b"{}", encoded=b"")
    assert store.item("n").request == b"{}"
    assert store.item("m") is None
