"""What rate limits count by: moving windows and live replies, in this process or in a Redis that replicas share."""
