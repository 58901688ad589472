"""The steps that bring the database schema up to date; Alembic runs them. Start reading at versions/0001_first.py."""
