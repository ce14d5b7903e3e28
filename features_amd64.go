package main

// seccompArchs are the system call interfaces that a guest's kernel has.
var seccompArchs = []string{"SCMP_ARCH_X32", "SCMP_ARCH_X86", "SCMP_ARCH_X86_64"}
