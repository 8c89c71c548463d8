"""The durable record: jobs, events, keys and images in SQL, and logs beside it."""
