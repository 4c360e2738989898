"""Pictures are looked for by several threads, and the counts are those of one."""

import os
import threading

from recsys.data.prepare.pictures import Pictures, look_for_pictures


def test_pictures_are_counted_by_several_threads_at_once(tmp_path, monkeypatch):
    root, num_rows = tmp_path / "root", 3500
    for folder in ("root/a", "root/b", "outside"):
        (tmp_path / folder).mkdir(parents=True)
    (root / "link").symlink_to(tmp_path / "outside")
    (root / "a" / "out.png").symlink_to(tmp_path / "outside" / "x.png")
    (root / "a" / "in.png").symlink_to(root / "b" / "1.png")
    (root / "b" / "1.png").write_bytes(b"any")
    names = ["b/1.png", "a/in.png", None, "b/2.png", "b", "b/1.png/x", "a\0.png"]
    rows = [(row, names[row % len(names)]) for row in range(num_rows)]
    rows[1234], rows[3333], rows[2345] = ((1234, "a/out.png"), (3333, "link/x"), (2345, "link/1"))
    lstat, seen, are_two = os.lstat, set(), threading.Event()

    def waiting(path):
        """Every thread waits for a second one."""
        if threading.current_thread() is not threading.main_thread():
            seen.add(threading.get_ident())
            if len(seen) > 1:
                are_two.set()
            assert are_two.wait(timeout=30), "one thread looks at all pictures"
        return lstat(path)

    monkeypatch.setattr(os, "lstat", waiting)
    found = look_for_pictures(iter(rows), root)
    num_missing = sum(name not in names[:2] + ["a/out.png", "link/x", "link/1"] for _, name in rows)
    assert found == Pictures(
        num_missing=num_missing, num_outside=3, first_outside=(1234, "a/out.png")
    )


def test_no_rows_have_no_pictures(tmp_path):
    assert look_for_pictures([], tmp_path) == Pictures()
