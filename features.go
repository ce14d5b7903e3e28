package main

import (
	"strings"

	"github.com/moby/sys/capability"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-spec/specs-go/features"
	"github.com/urfave/cli/v2"

	"github.com/boxlite-oci/boxlite/libvm/plan"
)

var featuresCommand = &cli.Command{
	Name:  "features",
	Usage: "print what of the runtime specification is implemented, as JSON",
	Description: `The format is the specification's own, features.md. What holds inside the VM
counts as implemented, such as seccomp.`,
	Before: takes(0, 0),
	Action: func(c *cli.Context) error {
		return writeJSON(c.App.Writer, runtimeFeatures())
	},
}

func runtimeFeatures() features.Features {
	yes, no := true, false
	var capabilities []string
	for _, c := range capability.ListKnown() {
		capabilities = append(capabilities, "CAP_"+strings.ToUpper(c.String()))
	}
	return features.Features{
		OCIVersionMin: "1.0.0",
		OCIVersionMax: specs.Version,
		Hooks:         []string{"prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"},
		MountOptions:  plan.MountOptions(),
		Linux: &features.Linux{
			Namespaces:   []string{"cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"},
			Capabilities: capabilities,
			Cgroup:       &features.Cgroup{V1: &yes, V2: &yes, Systemd: &yes, SystemdUser: &yes, Rdma: &yes},
			Seccomp: &features.Seccomp{
				Enabled: &yes,
				Actions: []string{
					"SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_KILL_THREAD",
					"SCMP_ACT_LOG", "SCMP_ACT_TRACE", "SCMP_ACT_TRAP",
				},
				Operators: []string{
					"SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_LE", "SCMP_CMP_LT", "SCMP_CMP_MASKED_EQ", "SCMP_CMP_NE",
				},
				Archs:          []string{"SCMP_ARCH_X32", "SCMP_ARCH_X86", "SCMP_ARCH_X86_64"},
				KnownFlags:     []string{"SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_TSYNC"},
				SupportedFlags: []string{"SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_TSYNC"},
			},
			// The guest has no AppArmor and no SELinux. Of SELinux the host
			// side is done: the labels hold for the VM's processes and files.
			Apparmor: &features.Apparmor{Enabled: &no},
			Selinux:  &features.Selinux{Enabled: &yes},
			IntelRdt: &features.IntelRdt{Enabled: &no},
			// Mounts of the guest's own file systems can be id-mapped, but
			// those that callers mean are on virtio-fs, which cannot.
			MountExtensions: &features.MountExtensions{IDMap: &features.IDMap{Enabled: &no}},
			NetDevices:      &features.NetDevices{Enabled: &no},
		},
		Annotations: map[string]string{"boxlite.version": version, "boxlite.commit": commit},
		PotentiallyUnsafeConfigAnnotations: []string{
			plan.AnnotationKernel, plan.AnnotationMemory, plan.AnnotationVCPUs,
		},
	}
}
