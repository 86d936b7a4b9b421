"""The tables, as the newest migration leaves them.

Answers and messages are JSON text: any character a model may write fits, on SQLite and PostgreSQL alike.
Times are seconds since 1970. Totals tables hold counters: their numbers only ever grow.
"""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    TypeDecorator,
    false,
    true,
)
from sqlalchemy.engine import Dialect


class JsonText(TypeDecorator[Any]):
    """JSON kept as ASCII text: PostgreSQL's own JSON types refuse the character U+0000."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        return None if value is None else json.dumps(value, separators=(",", ":"), allow_nan=False)

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        return None if value is None else json.loads(value)


metadata = MetaData()
_Serial = BigInteger().with_variant(Integer, "sqlite")

assessments = Table(
    "assessments",
    metadata,
    Column("id", Text, primary_key=True),
    Column("assessment_id", Text, nullable=False),
    Column("group_id", Text, nullable=False),
    Column("received_at", Double, nullable=False),
    Column("stored_at", Double, nullable=False),
    Column("due_at", Double, nullable=False),
    # due_at while the row waits for maturity, else NULL: the index holds nothing but the rows still to be counted, the
    # sampled ones and those of the pool that were not drawn.
    Column("open_due_at", Double),
    Column("gateway", Text, nullable=False),
    Column("task", Text, nullable=False),
    Column("rollout", Text, nullable=False),
    Column("chosen", Text, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("served_version", Text, nullable=False),
    Column("fallback_reason", Text, nullable=False),
    Column("messages", JsonText),
    Column("control", JsonText),
    Column("candidate", JsonText),
    Column("fallback", JsonText),
    Column("sampled", Boolean, nullable=False),
    Column("stratum", Text, nullable=False),
    Column("sampling_probability", Double, nullable=False),
    # How many people label it, apart from one another.
    Column("labellers", Integer, nullable=False, server_default="1"),
    # The prevailing human label, by all labels there are.
    Column("truth", JsonText),
    Column("validated", Boolean, nullable=False),
    Column("erased", Boolean, nullable=False),
    Index("ix_assessments_open_due_at", "open_due_at"),
    Index("ix_assessments_received", "received_at", "id"),
    Index("ix_assessments_validated", "validated", "received_at", "id"),
    Index("ix_assessments_assessment", "assessment_id", "received_at"),
)

shadows = Table(
    "shadows",
    metadata,
    # No foreign key: the mirrored answer may arrive before the record it belongs to.
    Column("request_id", Text, primary_key=True),
    Column("candidate", JsonText, nullable=False),
    Column("arrived_at", Double, nullable=False),
    # False: too unsure to be given to anybody at the threshold in force.
    Column("kept", Boolean, nullable=False, server_default=true()),
    # Where pairs are drawn by stratum, the draw came with the mirrored answer.
    Column("pooled", Boolean, nullable=False, server_default=false()),
    Column("sampled", Boolean, nullable=False, server_default=false()),
    Column("stratum", Text, nullable=False, server_default="all"),
    Column("sampling_probability", Double, nullable=False, server_default="0"),
)

labels = Table(
    "labels",
    metadata,
    Column("seq", _Serial, primary_key=True, autoincrement=True),
    Column("request_id", Text, nullable=False),
    Column("labeller", Text, nullable=False),
    Column("labels", JsonText, nullable=False),
    Column("comment", Text, nullable=False),
    Column("labelled_at", Double, nullable=False),
    Index("ix_labels_request", "request_id", "seq"),
)

maturities = Table(
    "maturities",
    metadata,
    Column("request_id", Text, primary_key=True),
    Column("matured_at", Double, nullable=False),
    Column("results", JsonText, nullable=False),
)

label_totals = Table(
    "label_totals",
    metadata,
    *(
        Column(name, Text, primary_key=True)
        for name in ("rollout", "arm", "version", "field", "stratum", "result")
    ),
    Column("n", BigInteger, nullable=False),
)

pool_totals = Table(
    "pool_totals",
    metadata,
    *(Column(name, Text, primary_key=True) for name in ("rollout", "version", "stratum")),
    Column("n", BigInteger, nullable=False),
)

weight_totals = Table(
    "weight_totals",
    metadata,
    *(Column(name, Text, primary_key=True) for name in ("rollout", "version", "stratum")),
    Column("n", Double, nullable=False),
)

pair_totals = Table(
    "pair_totals",
    metadata,
    *(Column(name, Text, primary_key=True) for name in ("rollout", "version", "field", "result")),
    Column("n", BigInteger, nullable=False),
)

double_totals = Table(
    "double_totals",
    metadata,
    *(Column(name, Text, primary_key=True) for name in ("rollout", "field", "result")),
    Column("n", BigInteger, nullable=False),
)

confidence_totals = Table(
    "confidence_totals",
    metadata,
    *(Column(name, Text, primary_key=True) for name in ("rollout", "version", "field", "bin", "result")),
    Column("n", BigInteger, nullable=False),
)

correction_totals = Table(
    "correction_totals",
    metadata,
    *(Column(name, Text, primary_key=True) for name in ("rollout", "arm", "version")),
    Column("n", BigInteger, nullable=False),
)

feedback = Table(
    "feedback",
    metadata,
    Column("request_id", Text, primary_key=True),
    Column("client", Text, primary_key=True),
    Column("score", Text, nullable=False),
    Column("comment", Text, nullable=False),
    Column("given_at", Double, nullable=False),
    Column("counted", Boolean, nullable=False),
    Index("ix_feedback_counted", "counted", "given_at"),
)

audit = Table(
    "audit",
    metadata,
    Column("seq", _Serial, primary_key=True, autoincrement=True),
    Column("request_id", Text, nullable=False),
    Column("at", Double, nullable=False),
    # Who: the person or program, its role, and how it was known.
    Column("who", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("via", Text, nullable=False),
    # What: label or feedback, what became of it, and the task and schema it was checked against.
    Column("action", Text, nullable=False),
    Column("effect", Text, nullable=False),
    Column("task", Text, nullable=False),
    Column("schema_version", Text, nullable=False),
    Index("ix_audit_request", "request_id", "seq"),
)

satisfaction_totals = Table(
    "satisfaction_totals",
    metadata,
    *(Column(name, Text, primary_key=True) for name in ("rollout", "arm", "version", "score")),
    Column("n", BigInteger, nullable=False),
)

traffic_totals = Table(
    "traffic_totals",
    metadata,
    Column("hour", BigInteger, primary_key=True, autoincrement=False),
    *(
        Column(name, Text, primary_key=True)
        for name in ("rollout", "arm", "version", "outcome", "latency_edge")
    ),
    Column("n", BigInteger, nullable=False),
    Column("latency_seconds", Double, nullable=False),
    Column("cost_usd", Double, nullable=False),
)

pictures = Table(
    "pictures",
    metadata,
    Column("sha256", Text, primary_key=True),
    Column("size_bytes", BigInteger, nullable=False),
    Column("content_type", Text, nullable=False),
    Column("last_put_at", Double, nullable=False),
    Index("ix_pictures_last_put_at", "last_put_at"),
)

assessment_pictures = Table(
    "assessment_pictures",
    metadata,
    Column("request_id", Text, primary_key=True),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("sha256", Text, nullable=False),
    Index("ix_assessment_pictures_sha256", "sha256"),
)

erasures = Table(
    "erasures",
    metadata,
    Column("assessment_id", Text, primary_key=True),
    Column("erased_at", Double, nullable=False),
)
