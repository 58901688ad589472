"""Adds columns for the server optimizer's moments (its state) and for fairness-aware weights.

The new columns are empty in old rows.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("receipts", sa.Column("distance", sa.Float))
    op.add_column("versions", sa.Column("moments", sa.Text, nullable=False, server_default="[]"))
    op.add_column("versions", sa.Column("weights", sa.Text, nullable=False, server_default="[]"))


def downgrade() -> None:
    raise RuntimeError("an older release cannot read what this one wrote: restore a backup")
