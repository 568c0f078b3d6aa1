"""Commands of the first hour: settings that are written for the user, a chat in the terminal, and what is wrong."""
