package main

import (
	"fmt"
	"os/signal"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/kernels"
	"github.com/boxlite-oci/boxlite/libvm/plan"
)

var standbyCommand = &cli.Command{
	Name:  "standby",
	Usage: "keep VMs ready for containers to come",
	Description: `As long as this command runs, it keeps VMs that were started from a template. A
container whose VM looks the same takes one of them, and finds QEMU there and the
guest's kernel awake; another VM is then started in its place. A line "KEY ready"
tells of each. SIGTERM or SIGINT ends it and the VMs that nobody took; containers
live on. It needs root, and about 90 MiB for each VM. After an upgrade of boxlite or
QEMU no container takes its VMs until it is started anew.`,
	Flags: []cli.Flag{
		&cli.IntFlag{Name: "vms", Value: 1, Usage: "`number` of VMs to keep ready"},
		&cli.StringFlag{Name: "kernel", Value: string(kernels.Lean), Usage: "`lean|net|full`: guest kernel"},
		vcpusFlag, memoryFlag,
	},
	Before: takes(0, 0),
	Action: func(c *cli.Context) error {
		rt, err := newRuntime(c)
		if err != nil {
			return err
		}
		kernel, _, err := kernels.Select(kernels.Needs{}, "", c.String("kernel"))
		if err != nil {
			return err
		}
		if n := c.Int("vms"); n < 1 {
			return fmt.Errorf("standby: --vms %d: at least 1", n)
		}
		ctx, stop := signal.NotifyContext(c.Context, unix.SIGINT, unix.SIGTERM)
		defer stop()
		shape := plan.Shape{Kernel: kernel, VCPUs: c.Int("vcpus"), MemoryMiB: c.Int("memory")}
		vms, made := c.Int("vms"), 0
		awaitNext := func() func() {
			return underWay(c.App.ErrWriter, fmt.Sprintf("VM %d of %d", made+1, vms), tick)
		}
		done := awaitNext()
		err = rt.Factory().Standby(ctx, shape, exampleSpec(), vms, func(key string) {
			done()
			fmt.Fprintln(c.App.Writer, key, "ready")
			if made++; made < vms {
				done = awaitNext()
			} else {
				done = func() {}
			}
		})
		done()
		if err != nil {
			return fmt.Errorf("boxlite: standby: %w", err)
		}
		return nil
	},
}
