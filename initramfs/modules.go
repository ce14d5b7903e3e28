package main

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cavaliergopher/cpio"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
)

// A module is a kernel module of a distribution's kernel.
type module struct {
	content []byte
	depends []string // names of modules that are loaded before
}

// modules returns the archive's entries for the named modules below dir and for what they depend on, named so that their
// order is the one to load them in. A name that no file below dir has is built into the kernel.
func modules(dir string, names []string) ([]entry, error) {
	files, err := moduleFiles(dir)
	if err != nil {
		return nil, err
	}
	var found []entry
	var add func(name string) error
	seen := map[string]bool{}
	add = func(name string) error {
		path, isFile := files[name]
		if seen[name] || !isFile {
			return nil
		}
		seen[name] = true
		m, err := readModule(path)
		if err != nil {
			return fmt.Errorf("module %s: %w", path, err)
		}
		for _, needed := range m.depends {
			if err := add(needed); err != nil {
				return err
			}
		}
		file := fmt.Sprintf("%s/%03d-%s.ko", strings.TrimPrefix(guestproto.ModulesDir, "/"), len(found), name)
		found = append(found, entry{cpio.Header{Name: file, Mode: cpio.TypeReg | 0o600}, m.content})
		return nil
	}
	for _, name := range names {
		if err := add(name); err != nil {
			return nil, err
		}
	}
	return append([]entry{{cpio.Header{Name: strings.TrimPrefix(guestproto.ModulesDir, "/"), Mode: cpio.TypeDir | 0o700}, nil}}, found...), nil
}

// moduleFiles are the paths of the uncompressed modules below dir, by name.
func moduleFiles(dir string) (map[string]string, error) {
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if name, isModule := strings.CutSuffix(filepath.Base(path), ".ko"); err == nil && isModule {
			files[moduleName(name)] = path
		}
		return err
	})
	return files, err
}

// moduleName is the name as the kernel has it. File names and dependencies may have dashes.
func moduleName(file string) string { return strings.ReplaceAll(file, "-", "_") }

// readModule reads a module and its section .modinfo (include/linux/module.h of Linux).
func readModule(path string) (module, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return module{}, err
	}
	f, err := elf.Open(path)
	if err != nil {
		return module{}, err
	}
	defer f.Close()
	section := f.Section(".modinfo")
	if section == nil {
		return module{}, fmt.Errorf("no section .modinfo")
	}
	info, err := section.Data()
	if err != nil {
		return module{}, err
	}
	return module{withoutSignature(content), dependencies(string(info))}, nil
}

// signatureMark ends a signed module. Before it is a struct module_signature, whose last four bytes are the length of the
// signature before that (include/linux/module_signature.h).
const (
	signatureMark   = "~Module signature appended~\n"
	signatureHeader = 12
)

// withoutSignature cuts off a module's signature. Whoever can change the archive can change guestinit as well, and under
// TCG the kernel takes some 15 ms to check one.
func withoutSignature(content []byte) []byte {
	signed, isSigned := bytes.CutSuffix(content, []byte(signatureMark))
	if !isSigned || len(signed) < signatureHeader {
		return content
	}
	length := uint64(binary.BigEndian.Uint32(signed[len(signed)-4:])) + signatureHeader
	if length > uint64(len(signed)) {
		return content
	}
	return signed[:uint64(len(signed))-length]
}

// dependencies are the modules that a .modinfo wants before its own: what its symbols come from, and what it asks for
// in words ("softdep=pre: A B post: C").
func dependencies(info string) []string {
	var names []string
	for field := range strings.SplitSeq(info, "\x00") {
		key, value, _ := strings.Cut(field, "=")
		switch key {
		case "depends":
			names = append(names, strings.Split(value, ",")...)
		case "softdep":
			if before, isPre := strings.CutPrefix(value, "pre:"); isPre {
				before, _, _ = strings.Cut(before, "post:")
				names = append(names, strings.Fields(before)...)
			}
		}
	}
	for i, name := range names {
		names[i] = moduleName(name)
	}
	return slices.DeleteFunc(names, func(name string) bool { return name == "" })
}
