"""Lets evaluations have no scores, and adds a column for the reason. The reason is empty in existing rows."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # SQLite cannot change a column, so alembic copies the table there. Positions stay, and none is used twice.
    with op.batch_alter_table("evaluations", table_kwargs={"sqlite_autoincrement": True}) as evaluations:
        evaluations.alter_column("alignment_score", existing_type=sa.Float, nullable=True)
        evaluations.alter_column("alignment_score_base2", existing_type=sa.Float, nullable=True)
        evaluations.add_column(sa.Column("not_reported", sa.String(40)))


def downgrade() -> None:
    raise RuntimeError("an older release cannot read what this one wrote: restore a backup")
