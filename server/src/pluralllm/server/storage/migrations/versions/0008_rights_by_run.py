"""Adds the runs that an observer may read, and the predecessor of each certificate.

Observers of an earlier release could read every run, and still can: their list is ["*"].
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table in ("members", "invites"):
        op.add_column(table, sa.Column("runs", sa.Text, nullable=False, server_default="[]"))
        op.execute(f"UPDATE {table} SET runs = '[\"*\"]' WHERE role = 'observer'")  # noqa: S608 - no text from outside
    op.add_column("certificates", sa.Column("predecessor", sa.String(40), nullable=False, server_default=""))


def downgrade() -> None:
    raise RuntimeError("an older release cannot read what this one wrote: restore a backup")
