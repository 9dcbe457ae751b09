"""What starts and stops a server: flags, checks, processes, engines, signals."""
