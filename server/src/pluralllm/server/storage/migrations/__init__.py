"""The database schema's versions, as Alembic runs them. Start reading at versions/0001_first.py."""
