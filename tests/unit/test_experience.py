from __future__ import annotations

from pathlib import Path

import pytest

from models.errors import Overloaded
from router.accounting.books import Books
from router.accounting.experience_store import ExperienceStore
from router.accounting.store import SQLiteStore
from router.experience import HALF_LIFE_S, Experience, Learned, Lessons, Sharing

WHERE = ("acme", "math")


class Replica:
    def __init__(self, ledger: object) -> None:
        self.experience = Experience()
        self.sharing = Sharing(lambda: self.experience, ledger)  # type: ignore[arg-type]

    def knows(self, *where: str) -> tuple[float, float] | None:
        org, work = where or WHERE
        return self.experience.of(org, work, ["m"]).get("m")


async def open_books(folder: Path) -> Books:
    return await Books.open(lambda: SQLiteStore(folder / "ledger.sqlite3"), folder / "journal")


async def test_what_one_replica_learns_the_others_know_and_it_outlives_them_and_the_ledger(tmp_path: Path) -> None:
    books = await open_books(tmp_path)
    one, two = Replica(books), Replica(books)
    one.experience.learn(*WHERE, "m", 1.0)
    assert one.knows() == pytest.approx((1, 0), abs=1e-4) and two.knows() is None
    for replica in (one, two):
        await replica.sharing.once()
    two.experience.learn(*WHERE, "m", 0.0, 0.5)
    assert two.knows() == pytest.approx((1, 0.5), abs=1e-4)
    for _ in range(3):
        for replica in (two, one):
            await replica.sharing.once()
    assert one.knows() == pytest.approx((1, 0.5), abs=1e-4) == two.knows()
    await books.close()
    books = await open_books(tmp_path)
    late = Replica(books)
    await late.sharing.once()
    assert late.knows() == pytest.approx((1, 0.5), abs=1e-4)
    one.sharing._ledger = books  # an older replica under a new ledger
    one.experience.learn(*WHERE, "m", 1.0)
    await one.sharing.once()
    await late.sharing.once()
    assert one.knows() == pytest.approx((2, 0.5), abs=1e-4) == late.knows()
    await books.close()


async def test_what_every_replica_has_heard_of_counts_once(tmp_path: Path) -> None:
    books = await open_books(tmp_path)
    one, two = Replica(books), Replica(books)
    one.experience.note(*WHERE, "m", 1.0)
    for replica in (one, two):
        replica.experience.hear(*WHERE, "m", 1.0)
    for replica in (one, two, one):
        await replica.sharing.once()
    assert one.knows() == pytest.approx((1, 0), abs=1e-4) == two.knows()
    await books.close()


async def test_nothing_is_lost_while_the_ledger_is_down(tmp_path: Path) -> None:
    class Down:
        async def share(self, lessons: Lessons) -> Lessons:
            raise Overloaded("no")

    replica = Replica(Down())
    replica.experience.learn(*WHERE, "m", 1.0)
    for _ in range(2):
        with pytest.raises(Overloaded):
            await replica.sharing.once()
    replica.experience.learn(*WHERE, "m", 0.0)
    books = await open_books(tmp_path)
    replica.sharing._ledger = books
    await replica.sharing.once()
    fresh = Replica(books)
    await fresh.sharing.once()
    assert fresh.knows() == replica.knows() == pytest.approx((1, 1), abs=1e-4)
    await books.close()


def test_the_ledger_keeps_the_newest_so_many_and_decays_them(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "ledger.sqlite3")
    shared = ExperienceStore(store._file, most=3)
    for number in range(5):
        shared.share(Lessons((Learned("acme", f"work-{number}", "m", 4.0, 2.0, 0),)), number)
    later = int(HALF_LIFE_S * 1000)
    told = shared.share(Lessons((Learned("acme", "work-4", "m", 1.0, 0.0, 0),)), later + 4)
    assert [row.work for row in told.rows] == ["work-2", "work-3", "work-4"]
    assert (told.rows[-1].good, told.rows[-1].bad) == (3.0, 1.0)
    again = ExperienceStore(store._file, most=3).share(Lessons((), told.incarnation, told.version), later)
    assert [(row.work, row.good) for row in again.rows] == [("work-2", 4.0), ("work-3", 4.0), ("work-4", 3.0)]
    assert shared.share(Lessons((), told.incarnation, told.version), later).rows == ()
    store.close()


async def test_a_long_book_is_told_in_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.accounting.experience_store.PAGE", 3)
    books = await open_books(tmp_path)
    one, two = Replica(books), Replica(books)
    for number in range(10):
        one.experience.learn(f"org-{number}", "math", "m", 1.0)
    await one.sharing.once()
    await two.sharing.once()
    assert len(two.experience) == 10
    assert all(two.knows(f"org-{number}", "math") for number in range(10))
    await books.close()
