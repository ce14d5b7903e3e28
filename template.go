package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/boxlite-oci/boxlite/kernels"
	"github.com/boxlite-oci/boxlite/libvm/parts"
	"github.com/boxlite-oci/boxlite/libvm/plan"
	"github.com/boxlite-oci/boxlite/libvm/template"
)

var templateCommand = &cli.Command{
	Name:  "template",
	Usage: "manage the saved VMs that containers start from",
	Description: `A VM that has booted and holds nothing of a container yet is saved, and later
containers whose VM looks the same start as copies of it. That happens by itself
with the first container of each kind; these commands do it ahead, and undo it.
Templates end with the host's boot.`,
	Subcommands: []*cli.Command{templateCreateCommand, templateListCommand, templateDeleteCommand, templatePathCommand},
}

var templateCreateCommand = &cli.Command{
	Name:  "create",
	Usage: "boot VMs and save them, and print their keys",
	Flags: []cli.Flag{
		&cli.StringFlag{Name: "kernel", Usage: "`lean|net|full`: guest kernel (default: one template of each that is installed)"},
		vcpusFlag, memoryFlag,
	},
	Action: func(c *cli.Context) error {
		rt, err := newRuntime(c)
		if err != nil {
			return err
		}
		kinds := []kernels.Kernel{kernels.Lean, kernels.Net}
		if name := c.String("kernel"); name != "" {
			kernel, _, err := kernels.Select(kernels.Needs{}, "", name)
			if err != nil {
				return err
			}
			kinds = []kernels.Kernel{kernel}
		} else if images, _, err := parts.FindImages(rt.Parts); err == nil && images[kernels.Full] != "" {
			kinds = append(kinds, kernels.Full)
		}
		for i, kernel := range kinds {
			done := underWay(c.App.ErrWriter, fmt.Sprintf("template %s, %d of %d", kernel, i+1, len(kinds)), tick)
			key, err := rt.Factory().CreateTemplate(plan.Shape{Kernel: kernel, VCPUs: c.Int("vcpus"), MemoryMiB: c.Int("memory")})
			done()
			if err != nil {
				return fmt.Errorf("boxlite: template create: %w", err)
			}
			fmt.Fprintln(c.App.Writer, key)
		}
		return nil
	},
}

// The shape of a VM without a container.
var (
	vcpusFlag  = &cli.IntFlag{Name: "vcpus", Usage: "`number` of the VM's processors (default: the host's)"}
	memoryFlag = &cli.IntFlag{Name: "memory", Usage: "`MiB` of the VM (default: 1024)"}
)

var templateListCommand = &cli.Command{
	Name:  "list",
	Usage: "list templates, the one used last first",
	Action: func(c *cli.Context) error {
		list, err := listTemplates(c)
		if err != nil {
			return err
		}
		table := tabwriter.NewWriter(c.App.Writer, 0, 0, 2, ' ', 0)
		fmt.Fprintln(table, "KEY\tKERNEL\tVCPUS\tMEMORY\tACCEL\tSIZE\tUSED\tSTATUS")
		for _, t := range list {
			status := "ready"
			if t.Outdated {
				status = "outdated"
			}
			fmt.Fprintf(table, "%s\t%s\t%d\t%d MiB\t%s\t%.1f MiB\t%s\t%s\n", t.Key, filepath.Base(t.Kernel), t.VCPUs, t.MemoryMiB, t.Accel,
				float64(t.Bytes)/(1<<20), t.Used.Format(time.DateTime), status)
		}
		return table.Flush()
	},
}

var templateDeleteCommand = &cli.Command{
	Name:      "delete",
	Usage:     "delete templates; containers that run are not touched",
	ArgsUsage: "KEY... | --all",
	Flags:     []cli.Flag{&cli.BoolFlag{Name: "all", Usage: "delete all"}},
	Action: func(c *cli.Context) error {
		keys := c.Args().Slice()
		if c.Bool("all") {
			list, err := listTemplates(c)
			if err != nil {
				return err
			}
			for _, t := range list {
				keys = append(keys, t.Key)
			}
		} else if len(keys) == 0 {
			return errors.New("template delete: give keys (see template list) or --all")
		}
		return withTemplates(c, func(s *template.Store) error {
			for _, key := range keys {
				if err := s.Delete(key); err != nil {
					return err
				}
			}
			return nil
		})
	},
}

var templatePathCommand = &cli.Command{
	Name:      "path",
	Usage:     "print the directory of a template, or of all",
	ArgsUsage: "[KEY]",
	Action: func(c *cli.Context) error {
		dir, err := templateDir(c)
		if err != nil {
			return err
		}
		if key := c.Args().First(); key != "" {
			dir = filepath.Join(dir, key)
		}
		_, err = fmt.Fprintln(c.App.Writer, dir)
		return err
	},
}

func listTemplates(c *cli.Context) (list []template.Info, err error) {
	err = withTemplates(c, func(s *template.Store) error {
		list, err = s.List()
		return err
	})
	return list, err
}

// withTemplates calls f with the store, unless there is none.
func withTemplates(c *cli.Context, f func(*template.Store) error) error {
	dir, err := templateDir(c)
	if err != nil {
		return err
	}
	s, err := template.Open(dir, false)
	if errors.Is(err, template.ErrNone) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(f(s), s.Close())
}
