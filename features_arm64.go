package main

// seccompArchs are the system call interfaces that a guest's kernel has.
var seccompArchs = []string{"SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"}
