"""The steps of the database schema, one module for each step, in order. A step that has been released is never changed."""
