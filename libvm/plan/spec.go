package plan

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Rootfs is the absolute path of root.path, which must be a directory.
func Rootfs(spec *specs.Spec, bundle string) (string, error) {
	rootfs := spec.Root.Path
	if !filepath.IsAbs(rootfs) {
		rootfs = filepath.Join(bundle, rootfs)
	}
	rootfs, err := filepath.EvalSymlinks(rootfs)
	if err != nil {
		return "", fmt.Errorf("rootfs: %w", err)
	}
	st, err := os.Stat(rootfs)
	if err != nil {
		return "", fmt.Errorf("rootfs: %w", err)
	}
	if !st.IsDir() {
		return "", fmt.Errorf("rootfs: %s is not a directory", rootfs)
	}
	return rootfs, nil
}

// CgroupsPath is linux.cgroupsPath; empty if there is none.
func CgroupsPath(spec *specs.Spec) string {
	if spec.Linux == nil {
		return ""
	}
	return spec.Linux.CgroupsPath
}

// Resources are linux.resources; nil if there are none.
func Resources(spec *specs.Spec) *specs.LinuxResources {
	if spec.Linux == nil {
		return nil
	}
	return spec.Linux.Resources
}

// Hooks returns the spec's hooks, never nil.
func Hooks(spec *specs.Spec) *specs.Hooks {
	if spec.Hooks == nil {
		return &specs.Hooks{}
	}
	return spec.Hooks
}

// annotationsSandbox are those of Podman and CRI-O and of containerd's CRI on
// the members of a pod: the id of the container whose namespaces they join.
// containerd's is on that container too.
var annotationsSandbox = []string{"io.kubernetes.cri-o.SandboxID", "io.kubernetes.cri.sandbox-id"}

// Sandbox is the id of the pod sandbox that the container belongs to. It is empty
// for a container that is in no pod.
func Sandbox(spec *specs.Spec) string {
	for _, name := range annotationsSandbox {
		if id := spec.Annotations[name]; id != "" {
			return id
		}
	}
	return ""
}
