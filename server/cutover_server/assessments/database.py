"""One database, SQLite or PostgreSQL: transactions, totals that add up, and migrations that replicas run one at a time.

`read` and `write` raise `DatabaseDown` when the database cannot be reached or cannot carry out a sound statement now
(read-only, full, too busy), and only then. On SQLite a writer takes the write lock when it begins, so that two processes
wait for one another instead of failing half-way.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import zlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import asyncpg
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, Table, event, select, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

log = logging.getLogger(__name__)

MIGRATIONS = Path(__file__).parent / "migrations"
_MIGRATION_LOCK = 0x63_75_74_6F_76_65_72
"""Key of the advisory lock; any constant that nothing else in the database uses."""


_ERASURES = 0x63_75_74_6F
_ERASURE_LOCKS = 64
"""Advisory locks that keep an assessment's records and its deletion apart: few, for a batch names many assessments."""
_NOT_NOW = frozenset({"08", "0A", "25", "40", "53", "54", "55", "57", "58", "F0", "XX"})
"""SQLSTATE classes that say nothing about the values: connection, feature, transaction state (read-only), rollback
(deadlock), resources (disk, memory), limits, locks, operator, system, configuration, internal."""


class DatabaseDown(RuntimeError):
    """The database cannot be reached now, or cannot do anything now."""


class Database:
    def __init__(self, url: str) -> None:
        parsed = _driver_url(url)
        self.is_postgresql = parsed.get_backend_name() == "postgresql"
        self.migrated = False
        if self.is_postgresql:
            self.engine = create_async_engine(
                parsed,
                pool_size=8,
                max_overflow=4,
                pool_timeout=5,
                pool_pre_ping=True,
                connect_args={"timeout": 5, "command_timeout": 60},
            )
        else:
            self.engine = create_async_engine(parsed)
            event.listen(self.engine.sync_engine, "connect", _prepare_sqlite)
            event.listen(self.engine.sync_engine, "begin", _begin_sqlite)

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        async with self._transaction(readonly=True) as connection:
            yield connection

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        async with self._transaction(readonly=False) as connection:
            yield connection

    @asynccontextmanager
    async def _transaction(self, *, readonly: bool) -> AsyncIterator[AsyncConnection]:
        try:
            connection = await self.engine.connect()
        except (
            OSError,
            asyncpg.PostgresError,
            asyncpg.InterfaceError,
            DBAPIError,
            PoolTimeoutError,
        ) as error:
            raise DatabaseDown(f"cannot connect: {type(error).__name__}") from error
        try:
            await connection.execution_options(cutover_readonly=readonly)
            async with connection.begin():
                yield connection
        except TimeoutError as error:
            raise DatabaseDown("no answer in time") from error
        except (OperationalError, InterfaceError) as error:
            raise DatabaseDown(f"connection lost: {type(error.orig).__name__}") from error
        except DBAPIError as error:
            if error.connection_invalidated:
                raise DatabaseDown(f"connection lost: {type(error.orig).__name__}") from error
            state = sqlstate(error)
            if state is not None and state[:2] in _NOT_NOW:
                raise DatabaseDown(f"cannot be done now: SQLSTATE {state}") from error
            raise
        finally:
            await asyncio.shield(connection.close())

    async def hold_apart(
        self, connection: AsyncConnection, assessment_ids: Iterable[str], *, alone: bool
    ) -> None:
        """Until the transaction ends: many may write records of an assessment at once, its deletion is alone.

        SQLite has one writer at a time anyway.
        """
        if not self.is_postgresql:
            return
        kind = "pg_advisory_xact_lock" if alone else "pg_advisory_xact_lock_shared"
        keys = sorted({zlib.crc32(name.encode()) % _ERASURE_LOCKS for name in assessment_ids})
        for key in keys:
            await connection.execute(text(f"SELECT {kind}(:space, :key)"), {"space": _ERASURES, "key": key})

    async def migrate(self) -> None:
        """Brings the tables up to this program's version. Safe when several replicas do it at once."""
        async with self.write() as connection:
            if self.is_postgresql:
                await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
            await connection.run_sync(_upgrade)
        self.migrated = True

    async def reachable(self) -> bool:
        try:
            async with self.read() as connection:
                await connection.execute(select(1))
        except DatabaseDown:
            return False
        return True

    async def close(self) -> None:
        await self.engine.dispose()

    def insert(self, table: Table) -> Any:
        """An INSERT of this database's dialect, which knows ON CONFLICT."""
        return postgresql.insert(table) if self.is_postgresql else sqlite.insert(table)

    async def add(
        self,
        connection: AsyncConnection,
        table: Table,
        increments: Mapping[tuple[Any, ...], tuple[float, ...]],
    ) -> None:
        """Adds to counters: key columns -> increments of the other columns, created at zero when absent."""
        keys = [column.name for column in table.primary_key]
        values = [column.name for column in table.columns if column.name not in keys]
        if not increments:
            return
        # Always in the same order: two replicas adding to the same counters cannot lock each other out.
        rows = [
            dict(zip(keys, key, strict=True)) | dict(zip(values, amounts, strict=True))
            for key, amounts in sorted(increments.items())
        ]
        statement = self.insert(table)
        await connection.execute(
            statement.on_conflict_do_update(
                index_elements=keys,
                set_={name: table.c[name] + statement.excluded[name] for name in values},
            ),
            rows,
        )


def _driver_url(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise ValueError(
            "CUTOVER_DATABASE_URL is not a URL such as postgresql://user:password@host/name"
        ) from error
    backend = parsed.get_backend_name()
    if backend in ("postgresql", "postgres"):
        query = dict(parsed.query)
        if "sslmode" in query:
            query["ssl"] = query.pop("sslmode")
        return parsed.set(drivername="postgresql+asyncpg", query=query)
    if backend == "sqlite":
        if not parsed.database or parsed.database == ":memory:":
            raise ValueError(
                "CUTOVER_DATABASE_URL: SQLite needs a file, such as sqlite:////data/assessments.db"
            )
        return parsed.set(drivername="sqlite+aiosqlite")
    raise ValueError(f"CUTOVER_DATABASE_URL: {backend!r} is neither postgresql nor sqlite")


def _prepare_sqlite(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # BEGIN is ours, see _begin_sqlite
    cursor = connection.cursor()
    for pragma in ("busy_timeout=15000", "synchronous=FULL"):
        cursor.execute(f"PRAGMA {pragma}")
    # Turning a file to WAL waits for nobody: when another process is at it, the file is what that one makes of it.
    with suppress(sqlite3.OperationalError):
        cursor.execute("PRAGMA journal_mode=WAL")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    readonly = connection.get_execution_options().get("cutover_readonly", False)
    connection.exec_driver_sql("BEGIN" if readonly else "BEGIN IMMEDIATE")


def _upgrade(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        if "Can't locate revision" not in str(error):
            raise
        # A replica of the version before restarts in the middle of an upgrade: migrations only add, so it can serve.
        log.warning("the database was migrated by a newer version; serving it as it is")


def sqlstate(error: DBAPIError) -> str | None:
    """PostgreSQL's five-character code of an error; None for SQLite's."""
    state = getattr(error.orig, "sqlstate", None)
    return state if isinstance(state, str) else None


Clock = Callable[[], float]
"""Seconds since 1970; an argument everywhere, so that tests move it."""
