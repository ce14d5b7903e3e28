package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A file of the freshness cases is a program that prints the textSize bytes behind its code: the text, what was appended to it,
// and zeros. So one file can be read, mapped and run.
const (
	codeAt   = 0x78
	textSize = 64
)

// program makes such a file's content.
func program(text string) []byte {
	const base = 0x400000
	code := []byte{
		0xb8, 1, 0, 0, 0, // mov eax, SYS_write
		0xbf, 1, 0, 0, 0, // mov edi, 1
		0xbe, 0, 0, 0, 0, // mov esi, the text
		0xba, textSize, 0, 0, 0, // mov edx, textSize
		0x0f, 0x05, // syscall
		0xb8, 60, 0, 0, 0, // mov eax, SYS_exit
		0x31, 0xff, // xor edi, edi
		0x0f, 0x05, // syscall
	}
	textAt := codeAt + len(code)
	binary.LittleEndian.PutUint32(code[11:], uint32(base+textAt))

	var b bytes.Buffer
	put := func(values ...any) {
		for _, v := range values {
			_ = binary.Write(&b, binary.LittleEndian, v) // a bytes.Buffer takes everything
		}
	}
	size := uint64(textAt + textSize)
	put([]byte("\x7fELF\x02\x01\x01"), make([]byte, 9))
	put(uint16(2), uint16(62), uint32(1), uint64(base+codeAt), uint64(64), uint64(0), uint32(0))                     // ET_EXEC, x86-64, entry, program headers
	put(uint16(64), uint16(56), uint16(1), uint16(0), uint16(0), uint16(0))                                          // one of them
	put(uint32(1), uint32(5), uint64(0), uint64(base), uint64(base), size, size, uint64(0x1000), code, []byte(text)) // PT_LOAD, r-x
	return b.Bytes()
}

// change HOW FILE TEXT gives FILE the text in one of several ways. Text of the same length leaves the size as it was, but for
// append, which puts it behind what is there.
func change(args []string) error {
	how, name, text := args[0], args[1], args[2]
	content := program(text)
	before, err := os.Stat(name)
	if err != nil && how != "make" {
		return err
	}
	switch how {
	case "make":
		return os.WriteFile(name, content, 0o755)
	case "in-place", "kept":
		err = write(name, os.O_WRONLY, content)
	case "truncate":
		err = write(name, os.O_WRONLY|os.O_TRUNC, content)
	case "append":
		err = write(name, os.O_WRONLY|os.O_APPEND, []byte(text))
	case "rename", "rename-kept":
		if err = os.WriteFile(name+".new", content, 0o755); err == nil {
			err = os.Rename(name+".new", name)
		}
	case "mmap":
		err = writeMapped(name, content)
	default:
		err = fmt.Errorf("unknown way %q", how)
	}
	if err == nil && strings.HasSuffix(how, "kept") {
		err = os.Chtimes(name, time.Time{}, before.ModTime())
	}
	return err
}

func write(name string, flags int, content []byte) error {
	f, err := os.OpenFile(name, flags, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	return err
}

func writeMapped(name string, content []byte) error {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	m, err := unix.Mmap(int(f.Fd()), 0, len(content), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	copy(m, content)
	if err := unix.Msync(m, unix.MS_SYNC); err != nil {
		return err
	}
	return unix.Munmap(m)
}

// look FILE... prints FILE=TEXT for each. How it reads a file the end of the name says: .read, .mmap or .exec.
func look(args []string) error {
	textAt := len(program(""))
	for _, name := range args {
		var out []byte
		var err error
		switch {
		case strings.HasSuffix(name, ".read"):
			if out, err = os.ReadFile(name); err == nil {
				out = out[min(len(out), textAt):]
			}
		case strings.HasSuffix(name, ".mmap"):
			out, err = readMapped(name, textAt)
		default:
			out, err = exec.Command("./" + name).Output()
		}
		text := string(bytes.TrimRight(out, "\x00"))
		if err != nil {
			text = err.Error()
		}
		fmt.Printf("%s=%s\n", name, text)
	}
	return nil
}

func readMapped(name string, textAt int) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	m, err := unix.Mmap(int(f.Fd()), 0, textAt+textSize, unix.PROT_READ, unix.MAP_PRIVATE)
	if err != nil {
		return nil, err
	}
	out := bytes.Clone(m[textAt:])
	return out, unix.Munmap(m)
}
