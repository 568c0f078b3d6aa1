"""Every `secateur` command of the server, one file each: it parses arguments, calls a room, and prints.

May import everything.
"""
