package main

import (
	"encoding/json"
	"io"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/urfave/cli/v2"

	"github.com/boxlite-oci/boxlite/libvm"
)

var stateCommand = &cli.Command{
	Name:      "state",
	Usage:     "print the state of a container as JSON",
	ArgsUsage: "ID",
	Before:    takes(1, 1),
	Action: func(c *cli.Context) error {
		ctr, err := loadContainer(c)
		if err != nil {
			return err
		}
		return writeJSON(c.App.Writer, stateOf(ctr))
	},
}

// containerState is what state and list print: the runtime spec's state, what
// runc adds to it, and what the VM looks like.
type containerState struct {
	OCIVersion   string            `json:"ociVersion"`
	ID           string            `json:"id"`
	Pid          int               `json:"pid"`
	Status       libvm.Status      `json:"status"`
	Bundle       string            `json:"bundle"`
	Rootfs       string            `json:"rootfs"`
	Created      time.Time         `json:"created"`
	Annotations  map[string]string `json:"annotations,omitempty"`
	Owner        string            `json:"owner"`
	Kernel       string            `json:"kernel"`
	KernelReason string            `json:"kernelReason"`
	Accel        string            `json:"accel"`
	MemoryMiB    int               `json:"memoryMiB"`
	VCPUs        int               `json:"vcpus"`
	Template     string            `json:"template,omitempty"` // absent if the VM has booted
}

func stateOf(ctr *libvm.Container) containerState {
	status := ctr.Status()
	pid := ctr.Pid
	if status == specs.StateStopped {
		pid = 0
	}
	return containerState{
		OCIVersion: ctr.OCIVersion, ID: ctr.ID, Pid: pid, Status: status, Bundle: ctr.Bundle, Rootfs: ctr.Rootfs,
		Created: ctr.Created, Annotations: ctr.Spec.Annotations, Owner: ctr.Owner,
		Kernel: string(ctr.Kernel), KernelReason: ctr.KernelReason, Accel: ctr.Accel, MemoryMiB: ctr.MemoryMiB, VCPUs: ctr.VCPUs, Template: ctr.Template,
	}
}

func writeJSON(w io.Writer, v any) error {
	raw, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	_, err = w.Write(append(raw, '\n'))
	return err
}
