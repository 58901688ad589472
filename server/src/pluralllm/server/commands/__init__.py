"""The operator's commands apart from `serve`: init, admin, renew-issuer, backup, restore, verify, doctor, support-bundle.

The package may touch the state directory, the database, the blob store and the terminal.
Start reading at check_commands.py, backup_commands.py and authority_commands.py. These three modules define the options and the
output of the commands. They import the module that does the work only when a command runs.
"""
