"""Adds the runs that an observer may read, and the predecessor of each certificate.

Observers of an earlier release could read every run, and still can: their list is ["*"].

Each certificate becomes the renewal of the one before it, so that the owner of an older one can still void renewals by a thief.
Certificates of an earlier membership of the name, which were good for nothing already, become void.
"""

import itertools

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
    connection = op.get_bind()
    for name, created_s in connection.execute(sa.text("SELECT name, created_s FROM members")).all():
        of = {"member": name, "created_s": created_s}
        live = "FROM certificates WHERE member = :member AND revoked_s IS NULL"
        void = "UPDATE certificates SET revoked_s = :created_s WHERE member = :member AND revoked_s IS NULL"
        connection.execute(sa.text(f"{void} AND issued_s < :created_s"), of)
        line = connection.scalars(sa.text(f"SELECT serial {live} ORDER BY issued_s, serial"), of).all()
        for older, newer in itertools.pairwise(line):
            renewal = sa.text("UPDATE certificates SET predecessor = :older WHERE serial = :newer")
            connection.execute(renewal, {"older": older, "newer": newer})


def downgrade() -> None:
    raise RuntimeError("an older release cannot read what this one wrote: restore a backup")
