"""What stands behind the words of the command line. Each module loads when its command is called."""
