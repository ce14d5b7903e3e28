package main

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Shape of the data that files are measured with: one big file, and many small ones.
const (
	bigMiB       = 256
	smallBytes   = 1000
	filesPerDir  = 100
	stdoutMiB    = 512
	serverHost   = "10.197.0.1" // of the bridge
	bareAddress  = "10.197.0.200/24"
	mibBytes     = 1 << 20
	bufferLength = 128 << 10
)

// bareLimit is far more than a bare VM's work takes on the slowest machine.
const bareLimit = 5 * time.Minute

// units of the figures that load prints.
var units = map[string]struct{ what, unit string }{
	"read":   {"virtio-fs: read", rate},
	"write":  {"virtio-fs: write and fsync", rate},
	"untar":  {"virtio-fs: unpack small files", seconds},
	"find":   {"virtio-fs: find", seconds},
	"status": {"virtio-fs: stat all", seconds},
	"remove": {"virtio-fs: remove all", seconds},
	"send":   {"network: send", rate},
	"fetch":  {"network: fetch", rate},
	"echo":   {"network: round trip", seconds},
}

// streams compares what goes in and out of a container with the same in a bare VM, with the same program and data.
func streams(h *host, n repetitions, r *result) error {
	server, err := serve()
	if err != nil {
		return err
	}
	defer server.Close()
	address := server.Addr().String()
	data, err := h.data(n.smallFiles)
	if err != nil {
		return err
	}
	for i := range n.unmeasured + n.streams {
		for _, subject := range []struct {
			name string
			load func() (map[string]float64, error)
		}{
			{warm, func() (map[string]float64, error) { return loadContainer(data, address) }},
			{bareVM, func() (map[string]float64, error) { return loadBare(h, data, address) }},
		} {
			figures, err := subject.load()
			if err != nil {
				return fmt.Errorf("streams with %s: %w", subject.name, err)
			}
			for name, u := range units {
				if i >= n.unmeasured {
					r.add(u.what, subject.name, u.unit, figures[name])
				}
			}
		}
	}
	return stdout(h, n, r)
}

// data makes the directory, once; load leaves it as it was.
func (h *host) data(smallFiles int) (string, error) {
	dir := filepath.Join(h.work, "data")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(dir, "big"), make([]byte, bigMiB*mibBytes), 0o644); err != nil {
		return "", err
	}
	file, err := os.Create(filepath.Join(dir, "small.tar"))
	if err != nil {
		return "", err
	}
	defer file.Close()
	w := tar.NewWriter(file)
	text := []byte(strings.Repeat("boxlite.\n", smallBytes/9))
	for i := range smallFiles {
		if i%filesPerDir == 0 {
			if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: fmt.Sprintf("%d/", i/filesPerDir), Mode: 0o755}); err != nil {
				return "", err
			}
		}
		err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("%d/%d", i/filesPerDir, i), Mode: 0o644, Size: int64(len(text))})
		if err == nil {
			_, err = w.Write(text)
		}
		if err != nil {
			return "", err
		}
	}
	return dir, w.Close()
}

// loadContainer measures in a container on docker's bridge network, with the data as a volume.
func loadContainer(data, address string) (map[string]float64, error) {
	all := map[string]float64{}
	for _, args := range [][]string{{"files", "/data"}, {"net", address}} {
		out, err := docker(append([]string{"run", "--rm", "--runtime", warm, "-v", data + ":/data", "busybox", "/load"}, args...)...)
		if err != nil {
			return nil, err
		}
		if err := json.Unmarshal([]byte(out), &all); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// loadBare measures in a VM whose PID 1 is load, with a tap on the same bridge.
func loadBare(h *host, data, address string) (_ map[string]float64, err error) {
	order, err := json.Marshal(map[string]string{"address": bareAddress, "server": address})
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(data, "order.json"), order, 0o644); err != nil {
		return nil, err
	}
	said, err := runBare(h, h.commands, data, nil)
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(filepath.Join(data, "figures.json"))
	if err != nil {
		return nil, fmt.Errorf("%w (%s)", err, said)
	}
	all := map[string]float64{}
	return all, errors.Join(json.Unmarshal(text, &all), os.Remove(filepath.Join(data, "figures.json")))
}

// runBare runs load as PID 1 of a VM, with a tap on the bridge, to its end. It returns what the guest wrote to its
// console, which goes to watch too, unless that is nil.
func runBare(h *host, c commands, share string, watch io.Writer) (_ *console, err error) {
	if _, err := output("sh", "-ec", "ip tuntap add bxbare0 mode tap vnet_hdr && ip link set bxbare0 master bxbench0 up"); err != nil {
		return nil, err
	}
	defer func() {
		_, delErr := output("ip", "link", "del", "bxbare0")
		err = errors.Join(err, delErr)
	}()
	c.qemu = replace(c.qemu, "-initrd", func(string) string { return h.bare })
	c.qemu = append(c.qemu,
		"-device", "vhost-user-fs-pci,chardev=share,queue-size=1024,tag=boxlite,bus=port0",
		"-netdev", "tap,id=net0,ifname=bxbare0,script=no,downscript=no,vnet_hdr=on",
		"-device", "virtio-net-pci,disable-legacy=on,netdev=net0,romfile=,bus=port1")
	b, err := startBare(c, share, watch)
	defer func() { err = errors.Join(err, b.stop()) }()
	if err != nil {
		return nil, err
	}
	ended := make(chan error, 1)
	go func() { ended <- b.qemu.Wait() }()
	select {
	case err := <-ended:
		if err != nil {
			return nil, fmt.Errorf("QEMU: %w (%s)", err, b.console)
		}
	case <-time.After(bareLimit):
		return nil, fmt.Errorf("no end within %s (%s)", bareLimit, b.console)
	}
	return b.console, nil
}

// serve is the other end of load's network figures: the first byte of a connection says what to do.
func serve() (net.Listener, error) {
	l, err := net.Listen("tcp", serverHost+":0")
	if err != nil {
		return nil, err
	}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go answer(conn)
		}
	}()
	return l, nil
}

// answer serves one connection; what fails the client sees.
func answer(conn net.Conn) {
	defer conn.Close()
	var what [1]byte
	if _, err := io.ReadFull(conn, what[:]); err != nil {
		return
	}
	buf := make([]byte, bufferLength)
	switch what[0] {
	case 's':
		_, _ = io.CopyBuffer(struct{ io.Writer }{io.Discard}, conn, buf)
	case 'f':
		for range bigMiB * mibBytes / bufferLength {
			if _, err := conn.Write(buf); err != nil {
				return
			}
		}
	case 'e':
		_, _ = io.CopyBuffer(struct{ io.Writer }{conn}, struct{ io.Reader }{conn}, buf[:1])
	}
}

// stdout measures how fast a container's output comes through a pipe, from its first byte on.
func stdout(h *host, n repetitions, r *result) error {
	bundle, err := h.bundle("stdout", "/load", "stdout", fmt.Sprint(stdoutMiB))
	if err != nil {
		return err
	}
	for i := range n.unmeasured + n.streams {
		took, err := timeOutput(h.boxlite(), bundle, fmt.Sprintf("bench-stdout-%d", i))
		if err != nil {
			return err
		}
		if i >= n.unmeasured {
			r.add("stdout into a pipe", warm, rate, stdoutMiB/took.Seconds())
		}
	}
	return nil
}

func timeOutput(s subject, bundle, id string) (time.Duration, error) {
	cmd := exec.Command(s.bin, append(slices.Clone(s.flags), "run", "--bundle", bundle, id)...)
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	var first [1]byte
	if _, err := io.ReadFull(pipe, first[:]); err != nil {
		return 0, errors.Join(err, cmd.Wait())
	}
	began := time.Now()
	count, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{pipe}, make([]byte, bufferLength))
	took := time.Since(began)
	if err := errors.Join(err, cmd.Wait()); err != nil {
		return 0, err
	}
	if count+1 != stdoutMiB*mibBytes {
		return 0, fmt.Errorf("%s: %d bytes of output, want %d", id, count+1, stdoutMiB*mibBytes)
	}
	return took, nil
}
