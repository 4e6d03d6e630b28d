"""Rows, tables and splits: tasks from files and functions."""
