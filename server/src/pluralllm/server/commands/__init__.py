"""The operator's commands beside `serve`: init, admin, renew-issuer, backup, restore, verify, doctor, support-bundle.

May touch: the state directory, the database and the terminal.
Start reading at check_commands.py, backup_commands.py and authority_commands.py: options and output of the commands. They load
the module that does the work only when a command runs.
"""
