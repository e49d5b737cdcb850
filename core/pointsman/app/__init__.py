"""The only wiring: the command line, the processes, the admin server."""
