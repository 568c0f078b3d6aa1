"""OpenAI's API, one file per endpoint, and the formats that they share."""
