"""Limits: what may be asked, what the host can enforce, and what a job has used."""
