"""Adds what limits a member: its largest number of examples, the norms of its updates, and the factors that shorten updates.

Existing members and invites get the default number of examples. Existing receipts have no norm, and existing versions no factors.
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table in ("members", "invites"):
        op.add_column(table, sa.Column("max_examples", sa.BigInteger, nullable=False, server_default="10000"))
    op.add_column("receipts", sa.Column("norm", sa.Float))
    op.add_column("versions", sa.Column("scales", sa.Text, nullable=False, server_default="[]"))


def downgrade() -> None:
    raise RuntimeError("an older release cannot read what this one wrote: restore a backup")
