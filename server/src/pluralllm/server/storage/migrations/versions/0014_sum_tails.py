"""Adds to a round the tail of its private sum: what is known about all its updates together. Earlier rounds have none."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("rounds", sa.Column("tail", sa.Text, nullable=False, server_default="[]"))


def downgrade() -> None:
    raise RuntimeError("an older release cannot read what this one wrote: restore a backup")
