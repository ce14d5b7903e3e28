// Package seccomp compiles the seccomp object of a container's spec into a
// filter for seccomp(2). It follows libseccomp as runc uses it, where the two
// leave nothing to choose:
//
//   - names that an architecture does not have are skipped there;
//   - rules whose action is the default one are skipped;
//   - a rule without conditions beats those with conditions on the same call;
//   - several rules for one call are alternatives, conditions in one rule must
//     all hold; but conditions on the same argument in one rule are alternatives;
//   - calls newer than any that the filter names fail with ENOSYS and not by the
//     default action, so that a C library falls back to an older call.
//
// Compiling touches neither the system nor the process.
package seccomp

//go:generate go run ./gentables
