"""The operator's commands beside `serve`: init, admin, renew-issuer, backup, restore, verify, doctor, support-bundle.

May touch: the state directory, the database and the terminal.
Start reading at the module with the command's name; authority_commands.py has the first three.
"""
