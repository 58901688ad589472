"""The module that Alembic starts. It runs the migrations on the connection that sql_engine.py passes to Alembic."""

from alembic import context

from pluralllm.server.storage.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, transactional_ddl=True)
context.run_migrations()
