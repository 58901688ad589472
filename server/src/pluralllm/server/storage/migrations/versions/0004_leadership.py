"""Adds a table with one number, the generation. Only the coordinator that has this generation may write."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    leadership = op.create_table(
        "leadership",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("generation", sa.BigInteger, nullable=False),
    )
    op.bulk_insert(leadership, [{"id": 1, "generation": 0}])


def downgrade() -> None:
    raise RuntimeError("an older release cannot read what this one wrote: restore a backup")
