"""Draws by stratum, second labellers, and the totals of pairs, weights, doubles and confidence.

Only adds, each new column with a default: a replica of the version before may still write.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_TOTALS: dict[str, tuple[str, ...]] = {
    "pool_totals": ("rollout", "version", "stratum"),
    "weight_totals": ("rollout", "version", "stratum"),
    "pair_totals": ("rollout", "version", "field", "result"),
    "double_totals": ("rollout", "field", "result"),
    "confidence_totals": ("rollout", "version", "field", "bin", "result"),
}


def upgrade() -> None:
    op.add_column("assessments", sa.Column("labellers", sa.Integer(), nullable=False, server_default="1"))
    for column in (
        sa.Column("kept", sa.Boolean(), nullable=False, server_default=sa.true()),
        sa.Column("pooled", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("sampled", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("stratum", sa.Text(), nullable=False, server_default="all"),
        sa.Column("sampling_probability", sa.Double(), nullable=False, server_default="0"),
    ):
        op.add_column("shadows", column)
    for table, keys in _TOTALS.items():
        n: sa.Column[float] = (
            sa.Column("n", sa.Double(), nullable=False)
            if table == "weight_totals"
            else sa.Column("n", sa.BigInteger(), nullable=False)
        )
        op.create_table(
            table,
            *(sa.Column(key, sa.Text(), nullable=False) for key in keys),
            n,
            sa.PrimaryKeyConstraint(*keys),
        )
