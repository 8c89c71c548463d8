"""Files of jobs: what was uploaded for one, what is put into its sandbox, what is kept of what it left."""
