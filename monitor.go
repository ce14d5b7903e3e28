package main

import (
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"unsafe"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/libvm"
	"github.com/boxlite-oci/boxlite/libvm/hostsocket"
	"github.com/boxlite-oci/boxlite/libvm/latemounts"
	"github.com/boxlite-oci/boxlite/libvm/vmm"
)

// boxlite starts itself with the commands of this file. Their descriptor 3 is the
// connection to the command that started them.

var monitorCommand = &cli.Command{
	Name:      "monitor",
	Hidden:    true,
	ArgsUsage: "ID",
	Action:    func(c *cli.Context) error { return beLongLived(c, libvm.RunMonitor, monitorLog) },
}

var memberCommand = &cli.Command{
	Name:      "member",
	Hidden:    true,
	ArgsUsage: "ID",
	Action:    func(c *cli.Context) error { return beLongLived(c, libvm.RunMember, monitorLog) },
}

var execProcessCommand = &cli.Command{
	Name:      "exec-process",
	Hidden:    true,
	ArgsUsage: "ID",
	Action:    func(c *cli.Context) error { return beLongLived(c, libvm.RunExec, monitorLog) },
}

var standbyKeeperCommand = &cli.Command{
	Name:   "standby-keeper",
	Hidden: true,
	Action: func(c *cli.Context) error { return beLongLived(c, vmm.RunKeeper, givenLog) },
}

var lateMountsCommand = &cli.Command{
	Name:   latemounts.Command,
	Hidden: true,
	Action: func(c *cli.Context) error { return beLongLived(c, latemounts.Run, givenLog) },
}

var socketDialerCommand = &cli.Command{
	Name:   hostsocket.Command,
	Hidden: true,
	Action: func(c *cli.Context) error { return beLongLived(c, hostsocket.RunDialer, givenLog) },
}

func beLongLived(c *cli.Context, life func(*net.UnixConn, *slog.Logger) int, log func(*cli.Context) (*slog.Logger, error)) error {
	name := []byte("boxlite\x00") // started as /proc/self/exe, it would show as "exe"
	if err := unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(&name[0])), 0, 0, 0); err != nil {
		return err
	}
	f := os.NewFile(3, "sync")
	conn, err := net.FileConn(f)
	if err := errors.Join(err, f.Close()); err != nil {
		return errors.New("this command is for boxlite's own use")
	}
	logger, err := log(c)
	if err != nil {
		return err
	}
	return exitError(life(conn.(*net.UnixConn), logger))
}

// monitorLog opens the log that the creating command was given. Without one the log
// goes beside the container's state, as standard error belongs to the container.
func monitorLog(c *cli.Context) (*slog.Logger, error) {
	if c.String("log") != "" {
		return givenLog(c)
	}
	root, err := stateRoot(c)
	if err != nil {
		return nil, err
	}
	logs := &logOutput{}
	err = logs.open(filepath.Join(root, c.Args().First(), "monitor.log"), c.String("log-format"), c.Bool("debug"))
	return logs.logger, err
}

// givenLog is the log of the global flags.
func givenLog(c *cli.Context) (*slog.Logger, error) {
	return c.App.Metadata["logs"].(*logOutput).logger, nil
}
