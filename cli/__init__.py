"""What the commands of this repository share: flags, exit codes, whole models, whole files."""
