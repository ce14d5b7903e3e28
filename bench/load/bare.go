package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// What bench and the bare VM agree on: the share, its tag and the directory in it, and the order that lies there.
const (
	shareTag  = "boxlite"
	shareDir  = "/data"
	orderFile = shareDir + "/order.json"
	figures   = shareDir + "/figures.json"
)

// Order is what bench wants of a bare VM.
type Order struct {
	Address string `json:"address"` // of the VM, with prefix
	Server  string `json:"server"`  // bench's, of the network's figures
	// Command is run in the share as the root file system, in place of measuring.
	Command []string `json:"command"`
	Gateway string   `json:"gateway"` // for Command
}

// bareInit is the life of a bare VM: it mounts the share, brings up the one NIC, measures and powers off.
func bareInit() error {
	err := obey()
	if err != nil {
		fmt.Println("load:", err) // the console, which bench shows
	}
	unix.Sync()
	return errors.Join(err, unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF))
}

func obey() error {
	if err := mountAll("/", fileSystem{"proc", "/proc", "proc"}, fileSystem{shareTag, shareDir, "virtiofs"}); err != nil {
		return err
	}
	text, err := os.ReadFile(orderFile)
	if err != nil {
		return err
	}
	var order Order
	if err := json.Unmarshal(text, &order); err != nil {
		return err
	}
	if err := bringUp("eth0", order.Address); err != nil {
		return err
	}
	if order.Command != nil {
		return runImage(order)
	}
	return measureBare(order.Server)
}

func measureBare(server string) error {
	all, err := measure("files", shareDir)
	if err != nil {
		return err
	}
	net, err := measure("net", server)
	if err != nil {
		return err
	}
	maps.Copy(all, net)
	text, err := json.Marshal(all)
	if err != nil {
		return err
	}
	return os.WriteFile(figures, text, 0o644)
}

// runImage does what an init has to do before a command can run in the share, which is an image's root, and runs it.
func runImage(order Order) error {
	err := mountAll(shareDir,
		fileSystem{"proc", "/proc", "proc"}, fileSystem{"sysfs", "/sys", "sysfs"}, fileSystem{"cgroup2", "/sys/fs/cgroup", "cgroup2"},
		fileSystem{"devtmpfs", "/dev", "devtmpfs"}, fileSystem{"devpts", "/dev/pts", "devpts"}, fileSystem{"tmpfs", "/dev/shm", "tmpfs"})
	if err != nil {
		return err
	}
	for link, target := range map[string]string{"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"} {
		if err := os.Symlink(target, filepath.Join(shareDir, "dev", link)); err != nil {
			return err
		}
	}
	if err := bringUp("lo", "127.0.0.1/8"); err != nil {
		return err
	}
	if err := netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP(order.Gateway)}); err != nil {
		return fmt.Errorf("route to %s: %w", order.Gateway, err)
	}
	if err := unix.Sethostname([]byte("bare")); err != nil {
		return err
	}
	// The share becomes the root, for runc inside to pivot away from.
	if err := errors.Join(unix.Chdir(shareDir), unix.Mount(".", "/", "", unix.MS_MOVE, ""), unix.Chroot("."), unix.Chdir("/")); err != nil {
		return fmt.Errorf("change root: %w", err)
	}
	if err := os.Setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"); err != nil {
		return err
	}
	cmd := exec.Command(order.Command[0], order.Command[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return cmd.Run()
}

// fileSystem is what is to be mounted, in order of mount's arguments.
type fileSystem struct{ source, dir, kind string }

func mountAll(root string, all ...fileSystem) error {
	for _, m := range all {
		dir := filepath.Join(root, m.dir)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.source, dir, m.kind, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	return nil
}

func bringUp(name, address string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	addr, err := netlink.ParseAddr(address)
	if err != nil {
		return err
	}
	return errors.Join(netlink.AddrAdd(link, addr), netlink.LinkSetUp(link))
}
