"""Grammars that constrain replies: JSON schemas, regular expressions, choices and Lark, compiled by llguidance."""
