"""Alembic's entry: runs the migrations on the connection, and in the transaction, that the program holds."""

from __future__ import annotations

from alembic import context

from cutover_server.assessments.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
