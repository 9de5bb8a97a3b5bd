"""The subcommands of `lightning-vfs`, one module each; `lightning` holds those of the trainer."""
