"""Adds how much better a model version predicts a group from the group's own answers than from uniform ones.

Existing evaluations have no context gain.
"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("evaluations", sa.Column("context_gain", sa.Float))


def downgrade() -> None:
    raise RuntimeError("an older release cannot read what this one wrote: restore a backup")
