"""The durable record: jobs, events and keys in SQL, and logs beside it."""
