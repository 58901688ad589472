"""The module that Alembic starts: it runs the migrations on the connection that sql_engine.py hands over."""

from alembic import context

from pluralllm.server.storage.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, transactional_ddl=True)
context.run_migrations()
