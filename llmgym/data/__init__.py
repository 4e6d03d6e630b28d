"""Tasks from files and functions: files.py reads rows, rows.py makes tasks of them."""
