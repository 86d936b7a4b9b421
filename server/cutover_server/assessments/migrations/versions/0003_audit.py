"""Who gave which label and feedback, when, and what became of it.

Only adds: a replica of the version before may still write, and leaves no trace of what it takes.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "audit",
        sa.Column("seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        *(
            sa.Column(name, sa.Text(), nullable=False)
            for name in ("who", "role", "via", "action", "effect", "task", "schema_version")
        ),
    )
    op.create_index("ix_audit_request", "audit", ["request_id", "seq"])
