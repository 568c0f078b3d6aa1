"""Checks of the widget that take minutes or packages of their own: run by hand, `make widget-exams`."""
