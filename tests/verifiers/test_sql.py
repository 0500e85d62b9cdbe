"""SQL: which queries return what was asked for, and that nothing but reading is possible."""

import asyncio
import os
import signal
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif.errors import InputError, TaskError
from rlaif.types import Reward, Unverified
from rlaif.verifiers.sql import SqlOptions, SqlVerifier, Value, is_ordered, query_of, same_rows
from rlaif.verifiers.sql_process import ProcessError, Processes

SETUP = """
CREATE TABLE city (id INTEGER, name TEXT, country TEXT, people INTEGER, area REAL);
INSERT INTO city VALUES (1, 'Oslo', 'NO', 700000, 454.0), (2, 'Bergen', 'NO', 290000, 464.71),
    (3, 'Paris', 'FR', 2100000, 105.4), (4, 'Nice', 'FR', 340000, 71.92), (5, 'Atlantis', NULL, 0, NULL);
"""
BY_SIZE = "SELECT name FROM city WHERE country IS NOT NULL ORDER BY people DESC"
COUNTRIES = "SELECT country FROM city WHERE people > 100"  # NO, NO, FR, FR


async def verdict(completion: str, reference: str, setup: Any = SETUP, **options: Any) -> Reward | Unverified:
    verifier = SqlVerifier(SqlOptions.model_validate({"seconds": 5.0} | options))
    return await verifier.verify(completion, {"setup": setup, "reference": reference})


@pytest.mark.parametrize(
    ("query", "reference", "reason"),
    [
        ("SELECT name FROM city WHERE country NOTNULL ORDER BY -people", BY_SIZE, None),
        ("select name from city where country is not null order by people desc;", BY_SIZE, None),
        ("Here it is:\n```sql\nSELECT 1\n```\nno:\n```sql\n" + BY_SIZE + "\n```\nDone.", BY_SIZE, None),
        ("SELECT name FROM city WHERE country NOTNULL ORDER BY people", BY_SIZE, "wrong"),
        ("SELECT name, people FROM city WHERE country NOTNULL ORDER BY people DESC", BY_SIZE, "wrong"),
        ("SELECT country FROM city WHERE people > 100 ORDER BY id DESC", COUNTRIES, None),
        ("SELECT DISTINCT country FROM city WHERE people > 100", COUNTRIES, "wrong"),
        ("SELECT country FROM city WHERE people > 100 UNION ALL SELECT 'NO'", COUNTRIES, "wrong"),
        ("SELECT sum(area) / 1.0 FROM city", "SELECT total(area) FROM city", None),
        ("SELECT 5.0", "SELECT count(*) FROM city", None),
        ("SELECT '5'", "SELECT count(*) FROM city", "wrong"),
        ("SELECT NULL", "SELECT country FROM city WHERE id = 5", None),
        ("SELECT ''", "SELECT country FROM city WHERE id = 5", "wrong"),
        ("WITH big AS (SELECT * FROM city WHERE people > 1e6) SELECT name FROM big", "SELECT 'Paris'", None),
        ("VALUES ('Paris')", "SELECT 'Paris'", None),
        ("SELECT nme FROM city", BY_SIZE, "crashed"),
        ("I would select the names.", BY_SIZE, "unparseable"),
        ("", BY_SIZE, "unparseable"),
    ],
)
async def test_a_query_passes_when_it_returns_the_rows_of_the_reference(
    query: str, reference: str, reason: str | None
) -> None:
    found = await verdict(query, reference)
    assert isinstance(found, Reward), found
    assert (found.value, found.reason) == (float(reason is None), reason), found.detail


async def test_a_query_must_be_right_on_every_database() -> None:
    more = SETUP + "INSERT INTO city VALUES (6, 'Lyon', 'FR', 520000, 47.87);"
    guess = "SELECT 4"
    assert (await verdict(guess, "SELECT count(country) FROM city")) == Reward(value=1.0)
    both = await verdict(guess, "SELECT count(country) FROM city", setup=[SETUP, more])
    assert isinstance(both, Reward)
    assert both.value == 0.0


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"reference": BY_SIZE}, "setup"),
        ({"setup": SETUP}, "reference"),
        ({"setup": [], "reference": BY_SIZE}, "'setup'"),
        ({"setup": "CREATE TABL x", "reference": "SELECT 1"}, "the setup fails"),
        ({"setup": SETUP, "reference": "SELECT nme FROM city"}, "the reference fails"),
        ({"setup": SETUP, "reference": "DELETE FROM city"}, "the reference fails"),
        ({"setup": SETUP, "reference": "SELECT * FROM city WHERE id > 9"}, "returns no row"),
    ],
)
async def test_a_wrong_task_is_told_when_it_is_loaded_and_never_a_reward(task: dict[str, Any], message: str) -> None:
    verifier = SqlVerifier(SqlOptions())
    with pytest.raises(TaskError) as caught:
        await verifier.prepare(task)
    assert message in str(caught.value)
    found = await verifier.verify("SELECT 1", task)
    assert isinstance(found, Unverified)
    assert found.reason == "task_error"


async def test_a_process_that_does_not_do_its_work_is_infrastructure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/no/such/python")
    found = await verdict(BY_SIZE, BY_SIZE)
    assert isinstance(found, Unverified)
    assert found.reason == "infrastructure"
    with pytest.raises(InputError, match="cannot run on this machine"):
        await SqlVerifier(SqlOptions()).prepare({"setup": SETUP, "reference": BY_SIZE})


ASKED = {"setup": SETUP, "query": "SELECT 1", "seconds": 5, "memory_mb": 256, "max_rows": 9, "max_bytes": 999}


def test_a_process_that_gives_no_answer_in_time_is_killed_with_its_children_and_replaced() -> None:
    processes = Processes()
    endless = "WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r) SELECT count(*) FROM r"
    started = time.monotonic()
    with pytest.raises(ProcessError, match="no answer"):
        processes.ask(ASKED | {"query": endless, "seconds": 50}, seconds=0.3)
    assert time.monotonic() - started < 20
    assert processes.ask(ASKED, seconds=30) == {"rows": [[["int", 1]]], "columns": 1}
    processes.close()


def test_a_process_that_died_between_two_queries_is_replaced_after_one_failure() -> None:
    processes = Processes()
    processes.ask(ASKED, seconds=30)
    process = processes._idle.get_nowait()
    processes._idle.put(process)
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(ProcessError):
        processes.ask(ASKED, seconds=30)
    assert processes.ask(ASKED, seconds=30)["columns"] == 1
    processes.close()


def test_no_process_is_left_after_closing() -> None:
    processes = Processes()
    processes.ask(ASKED, seconds=30)
    process = processes._idle.get_nowait()
    processes._idle.put(process)
    assert process.poll() is None
    processes.close()
    processes.close()
    assert process.returncode == -signal.SIGKILL


async def test_a_verifier_works_in_one_event_loop_after_another() -> None:
    verifier = SqlVerifier(SqlOptions(seconds=20.0))
    task = {"setup": SETUP, "reference": "SELECT 1"}
    for _ in range(2):
        assert await asyncio.to_thread(asyncio.run, verifier.verify("SELECT 1", task)) == Reward(value=1.0)
    await verifier.aclose()
    await verifier.aclose()


async def test_many_queries_at_once_are_each_judged_by_their_own_rows() -> None:
    verifier = SqlVerifier(SqlOptions(seconds=20.0))
    tasks = [{"setup": SETUP, "reference": f"SELECT {i}"} for i in range(12)]
    right = await asyncio.gather(*(verifier.verify(f"SELECT {i}", task) for i, task in enumerate(tasks)))
    wrong = await asyncio.gather(*(verifier.verify(f"SELECT {i + 1}", task) for i, task in enumerate(tasks)))
    assert [r.value for r in right if isinstance(r, Reward)] == [1.0] * 12
    assert [r.value for r in wrong if isinstance(r, Reward)] == [0.0] * 12


@pytest.mark.parametrize(
    ("query", "ordered"),
    [
        (BY_SIZE, True),
        ("SELECT * FROM (SELECT * FROM city ORDER BY id)", False),
        ("SELECT 'order by' -- order by x\n", False),
        ("SELECT rank() OVER (ORDER BY people) FROM city", False),
        ("SELECT * FROM city order\n by 1 LIMIT 3", True),
    ],
)
def test_only_an_order_of_the_whole_query_is_an_order(query: str, ordered: bool) -> None:
    assert is_ordered(query) == ordered


def test_the_last_block_of_sql_is_the_query() -> None:
    assert query_of("```python\nx\n```\n```sql\nSELECT 1\n```") == "SELECT 1"
    assert query_of("```python\nSELECT 1\n```") is None
    assert query_of("-- why\nSELECT 1") == "-- why\nSELECT 1"


VALUES: st.SearchStrategy[Value] = st.one_of(
    st.none(), st.integers(-3, 3), st.sampled_from([0.5, 1.0, 1e-12]), st.sampled_from(["", "1", "a"]), st.just(b"a")
)
TABLES = st.integers(1, 3).flatmap(lambda n: st.lists(st.tuples(*[VALUES] * n), max_size=5))


@settings(deadline=None)
@given(TABLES, st.randoms())
def test_a_multiset_has_no_order_and_counts_every_row(table: list[tuple[Value, ...]], random: Any) -> None:
    shuffled = random.sample(table, len(table))
    assert same_rows(shuffled, table, ordered=False, tolerance=1e-9)
    assert not same_rows([*table, ("more",)], table, ordered=False, tolerance=1e-9)
    assert same_rows(shuffled, table, ordered=True, tolerance=0.0) or shuffled != table
