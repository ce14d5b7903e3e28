package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"

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
	Server  string `json:"server"`  // bench's
}

// bareInit is the life of a bare VM: it mounts the share, brings up the one NIC, measures and powers off.
func bareInit() error {
	err := measureBare()
	if err != nil {
		fmt.Println("load:", err) // the console, which bench shows
	}
	unix.Sync()
	return errors.Join(err, unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF))
}

func measureBare() error {
	for _, m := range []struct{ source, dir, kind string }{{"proc", "/proc", "proc"}, {shareTag, shareDir, "virtiofs"}} {
		if err := os.MkdirAll(m.dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.source, m.dir, m.kind, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.dir, err)
		}
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
	all, err := measure("files", shareDir)
	if err != nil {
		return err
	}
	net, err := measure("net", order.Server)
	if err != nil {
		return err
	}
	maps.Copy(all, net)
	if text, err = json.Marshal(all); err != nil {
		return err
	}
	return os.WriteFile(figures, text, 0o644)
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
