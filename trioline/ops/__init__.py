"""What people see of a job: readers of one frozen snapshot, never of live state."""
