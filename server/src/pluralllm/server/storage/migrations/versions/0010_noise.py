"""Adds what the members declare about the noise in their answers. Existing clients have stated nothing."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("clients", sa.Column("noise", sa.Text))


def downgrade() -> None:
    raise RuntimeError("an older release cannot read what this one wrote: restore a backup")
