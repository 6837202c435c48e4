"""The command line: options to settings, signals to stops, outcomes to exit codes."""
