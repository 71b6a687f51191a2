"""fastconv inside other frameworks: each module here imports its own when it is imported itself, and no other one."""
