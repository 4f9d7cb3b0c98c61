"""What this machine offers: devices, memory, files, the C++ core, progress."""
