"""`engine_run`, `engine_status`, `engine_check` and `engine_graceful`."""
