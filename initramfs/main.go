// Command initramfs packs guestinit, and the device filter of nearly every
// container, as the guest's initial file system: an uncompressed newc cpio
// archive, because unpacking zstd costs the guest more than reading a few MiB of
// memory. Equal input gives equal output, byte for byte.
//
//	go run ./initramfs -o bin/initramfs.cpio bin/guestinit
//
// For a distribution's kernel the archive has modules too, those that a file names in words:
//
//	go run ./initramfs -o ARCHIVE -modules lib/modules/VERSION -names kernels/prebuilt.modules bin/guestinit
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/cavaliergopher/cpio"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
	"github.com/boxlite-oci/boxlite/libvm/devicefilter"
)

func main() {
	output := flag.String("o", "", "archive to write")
	dir := flag.String("modules", "", "directory of a kernel's modules")
	names := flag.String("names", "", "file with the names of the modules to pack")
	flag.Parse()
	if *output == "" || flag.NArg() != 1 || (*dir == "") != (*names == "") {
		fmt.Fprintln(os.Stderr, "usage: initramfs -o ARCHIVE [-modules DIR -names FILE] GUESTINIT")
		os.Exit(2)
	}
	if err := run(*output, flag.Arg(0), *dir, *names); err != nil {
		fmt.Fprintf(os.Stderr, "initramfs: %v\n", err)
		os.Exit(1)
	}
}

// run writes the archive beside its destination and renames it into place.
func run(output, guestinit, modulesDir, namesFile string) (err error) {
	binary, err := os.ReadFile(guestinit)
	if err != nil {
		return err
	}
	content := entries(binary)
	if modulesDir != "" {
		names, err := os.ReadFile(namesFile)
		if err != nil {
			return err
		}
		packed, err := modules(modulesDir, words(string(names)))
		if err != nil {
			return err
		}
		content = append(content, packed...)
	}
	temporary := output + ".new"
	f, err := os.OpenFile(temporary, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(temporary)
		}
	}()
	if err := errors.Join(pack(f, content), f.Close()); err != nil {
		return err
	}
	return os.Rename(temporary, output)
}

// entries of the archive. /dev/console comes from the kernel, whose built-in
// initramfs has that node and is unpacked first; guestinit makes every other
// directory itself.
//
// The node is of no use until the port's driver has made a console, for which
// the kernel does not wait: PID 1 then starts without standard streams, and Go's
// runtime ends a program whose missing ones it cannot open as /dev/null. A plain
// file will do until guestinit takes the console (adoptConsole).
func entries(binary []byte) []entry {
	return []entry{
		{cpio.Header{Name: "dev", Mode: cpio.TypeDir | 0o755}, nil},
		{cpio.Header{Name: "dev/null", Mode: cpio.TypeReg | 0o666}, nil},
		{cpio.Header{Name: "newroot", Mode: cpio.TypeDir | 0o700}, nil},
		{cpio.Header{Name: "init", Mode: cpio.TypeReg | 0o755}, binary},
		{cpio.Header{Name: strings.TrimPrefix(guestproto.DeviceFilterFile, "/"), Mode: cpio.TypeReg | 0o600}, devicefilter.Default()},
	}
}

type entry struct {
	header  cpio.Header
	content []byte
}

// words of a text in which # begins a comment.
func words(text string) []string {
	var found []string
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		found = append(found, strings.Fields(line)...)
	}
	return found
}

func pack(w io.Writer, content []entry) error {
	archive := cpio.NewWriter(w)
	for i, e := range content {
		e.header.Inode = int64(i + 1)
		e.header.Links = 1
		e.header.Size = int64(len(e.content))
		if err := archive.WriteHeader(&e.header); err != nil {
			return fmt.Errorf("%s: %w", e.header.Name, err)
		}
		if _, err := archive.Write(e.content); err != nil {
			return fmt.Errorf("%s: %w", e.header.Name, err)
		}
	}
	return archive.Close()
}
