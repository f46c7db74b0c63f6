"""The subcommands, one file each: options, what it does, its table, its JSON."""
