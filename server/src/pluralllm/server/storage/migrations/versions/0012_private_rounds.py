"""Adds the messages of private rounds, and the digest of a private round's transcript. Existing rounds were plain."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "round_messages",
        sa.Column("run", sa.String(40), primary_key=True),
        sa.Column("round", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("step", sa.String(20), primary_key=True),
        sa.Column("client", sa.String(40), primary_key=True),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
    )
    op.add_column("versions", sa.Column("transcript", sa.String(64), nullable=False, server_default=""))


def downgrade() -> None:
    raise RuntimeError("an older release cannot read what this one wrote: restore a backup")
