"""Model-written programs, each in a process that can do nothing but compute."""
