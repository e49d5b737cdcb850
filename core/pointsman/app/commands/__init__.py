"""One module for each command of the command line; `pointsman.app.cli` loads them when they are asked for."""
