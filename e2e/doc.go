// Package e2e drives a runc drop-in from outside: through a private dockerd, and by hand. Everything is in its tests, a
// file per capability.
//
// Each case that is not about the VM runs with runc too, as the subtests "runc" and "boxlite": where runc fails, the case
// is wrong. After each subtest the processes, mounts, links, tc filters, cgroups, state and temporary files of the machine
// are compared with those before it; what is left over fails it.
//
// The tests need root and run in mount, network and pid namespaces of their own, so that "the host" of a case is empty
// but for dockerd, and all of it goes with the test's process. See README.md for how to run one.
package e2e
