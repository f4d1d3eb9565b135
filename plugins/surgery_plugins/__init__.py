"""The architectures that ship with the project, one file each."""
