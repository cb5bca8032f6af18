"""What lies between the controller and the process that runs it: ports, callers, numbers."""
