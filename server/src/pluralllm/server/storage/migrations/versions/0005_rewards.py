"""Adds a column for the digest of the rollouts (generated texts) that a round scored. The column is empty in existing rows."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("rounds", sa.Column("rollouts", sa.String(64), nullable=False, server_default=""))


def downgrade() -> None:
    raise RuntimeError("an older release cannot read what this one wrote: restore a backup")
