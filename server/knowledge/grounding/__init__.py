"""Decides how a question is answered from knowledge: refused, verbatim, or by a model that reads quoted passages."""
