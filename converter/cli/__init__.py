"""The command line of the converter: commands, options, progress, tables."""
