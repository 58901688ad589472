"""The steps of the database schema, one module for each, in order. A step that has been released is never changed."""
