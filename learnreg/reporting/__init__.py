"""Reporting: figures and tables. It draws values and knows no method."""
