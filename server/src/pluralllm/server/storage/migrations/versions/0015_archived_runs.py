"""Changes no table: from here on, logs may have the events RunArchived and RunUnarchived.

An older release cannot replay a log with one of them. With this number it refuses the database and says why.
"""

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    pass


def downgrade() -> None:
    raise RuntimeError("an older release cannot read what this one wrote: restore a backup")
