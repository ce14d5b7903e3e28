package main

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestDependencies(t *testing.T) {
	for info, want := range map[string][]string{
		"license=GPL\x00depends=\x00":                                  nil,
		"depends=nf-conntrack,x_tables\x00name=xt_x":                   {"nf_conntrack", "x_tables"},
		"softdep=pre: crc32c sha256-ssse3 post: ext4\x00depends=jbd2,": {"crc32c", "sha256_ssse3", "jbd2"},
		"softdep=post: ip6t_REJECT":                                    nil,
	} {
		if got := dependencies(info); !slices.Equal(got, want) {
			t.Errorf("dependencies(%q) = %q, want %q", info, got, want)
		}
	}
}

func TestWithoutSignature(t *testing.T) {
	sign := func(length byte) string {
		return "signed!" + "12345678" + "\x00\x00\x00" + string(rune(length)) + signatureMark
	}
	for content, want := range map[string]string{
		"":                       "",
		"module":                 "module",
		"module" + sign(7):       "module",
		"module" + sign(100):     "module" + sign(100), // longer than the file
		signatureMark:            signatureMark,
		"module" + sign(0) + "x": "module" + sign(0) + "x",
	} {
		if got := withoutSignature([]byte(content)); string(got) != want {
			t.Errorf("withoutSignature(%q) = %q, want %q", content, got, want)
		}
	}
}

// What a module depends on is before it, once, wherever the file is.
func TestModulesInOrder(t *testing.T) {
	dir := t.TempDir()
	for path, info := range map[string]string{
		"fs/virtiofs.ko":         "depends=fuse,virtio-ring\x00",
		"fs/fuse.ko":             "depends=\x00",
		"drivers/virtio-ring.ko": "depends=virtio\x00",
		"drivers/virtio.ko":      "depends=\x00",
		"drivers/other.ko":       "depends=\x00",
	} {
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, moduleFile(t, info), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	entries, err := modules(dir, words("virtiofs # the share\nbuilt_in virtio_ring\n"))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.header.Name)
	}
	want := []string{"modules", "modules/000-fuse.ko", "modules/001-virtio.ko", "modules/002-virtio_ring.ko", "modules/003-virtiofs.ko"}
	if !slices.Equal(names, want) {
		t.Errorf("entries %q, want %q", names, want)
	}

	if err := os.WriteFile(filepath.Join(dir, "fs/fuse.ko"), []byte("no module"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := modules(dir, []string{"virtiofs"}); err == nil {
		t.Error("a file that is no module was packed")
	}
}

// moduleFile is an ELF file with nothing but a section .modinfo.
func moduleFile(t *testing.T, info string) []byte {
	t.Helper()
	const names = "\x00.modinfo\x00.shstrtab\x00"
	header := elf.Header64{
		Type: uint16(elf.ET_REL), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT),
		Ehsize: 64, Shentsize: 64, Shnum: 3, Shstrndx: 2, Shoff: 64,
	}
	copy(header.Ident[:], elf.ELFMAG)
	header.Ident[elf.EI_CLASS], header.Ident[elf.EI_DATA], header.Ident[elf.EI_VERSION] = byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)
	const content = 64 + 3*64
	sections := []elf.Section64{
		{},
		{Name: 1, Type: uint32(elf.SHT_PROGBITS), Off: content, Size: uint64(len(info))},
		{Name: 10, Type: uint32(elf.SHT_STRTAB), Off: content + uint64(len(info)), Size: uint64(len(names))},
	}
	var file bytes.Buffer
	for _, part := range []any{header, sections, []byte(info), []byte(names)} {
		if err := binary.Write(&file, binary.LittleEndian, part); err != nil {
			t.Fatal(err)
		}
	}
	return file.Bytes()
}
