// Package engineconfig registers an OCI runtime with a container engine, by an
// edit of the engine's configuration that leaves the rest of it as it is: what
// it does not know, the order, the layout and, where the format has any, the
// comments.
//
// What becomes of a file is worked out first, as a Change, and then applied.
// Engines differ in the format: Docker has JSON (docker.go), containerd TOML
// (containerd.go), and Podman and CRI-O read directories of files of which one is
// boxlite's own (dropin.go).
package engineconfig
