"""Borders to other packages, one file each: a leaf that nothing needs, and that only its own extra installs."""
