package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// mmapShared FILE writes through a shared mapping and reads the file back through a descriptor.
func mmapShared(args []string) error {
	f, err := os.OpenFile(args[0], os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	if err := f.Truncate(2 << 20); err != nil {
		return err
	}
	m, err := unix.Mmap(int(f.Fd()), 0, 2<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("mmap shared: %w", err)
	}
	want := []byte("written through the mapping")
	copy(m[1<<20:], want)
	if err := unix.Msync(m, unix.MS_SYNC); err != nil {
		return fmt.Errorf("msync: %w", err)
	}
	got := make([]byte, len(want))
	if _, err := f.ReadAt(got, 1<<20); err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("the file holds %q, the mapping %q", got, want)
	}
	fmt.Println("mmap ok")
	return nil
}

// mmapHeld FILE... writes each line of stdin to the start of the files, through shared mappings that it keeps and never
// syncs, and then says it.
func mmapHeld(args []string) error {
	var mappings [][]byte
	for _, path := range args {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
		if err != nil {
			return err
		}
		if err := f.Truncate(1 << 20); err != nil {
			return err
		}
		m, err := unix.Mmap(int(f.Fd()), 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			return fmt.Errorf("mmap shared: %w", err)
		}
		mappings = append(mappings, m)
	}
	fmt.Println("mapped")
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		for _, m := range mappings {
			copy(m, lines.Text())
			copy(m[len(m)/2:], lines.Text())
		}
		fmt.Println("wrote", lines.Text())
	}
	return lines.Err()
}

// flock FILE takes the lock twice through two descriptors; the second must be refused until the first lets go.
func flock(args []string) error {
	a, err := os.OpenFile(args[0], os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	b, err := os.Open(args[0])
	if err != nil {
		return err
	}
	if err := unix.Flock(int(a.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("first lock: %w", err)
	}
	if err := unix.Flock(int(b.Fd()), unix.LOCK_EX|unix.LOCK_NB); !errors.Is(err, unix.EWOULDBLOCK) {
		return fmt.Errorf("second lock = %v, want %v", err, unix.EWOULDBLOCK)
	}
	if err := unix.Flock(int(a.Fd()), unix.LOCK_UN); err != nil {
		return err
	}
	if err := unix.Flock(int(b.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("lock after unlock: %w", err)
	}
	fmt.Println("flock ok")
	return nil
}

// fcntlLock FILE holds a record lock while a second process tries the same record and its neighbour.
func fcntlLock(args []string) error {
	f, err := os.OpenFile(args[0], os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	lock := unix.Flock_t{Type: unix.F_WRLCK, Start: 0, Len: 10}
	if err := unix.FcntlFlock(f.Fd(), unix.F_SETLK, &lock); err != nil {
		return fmt.Errorf("lock: %w", err)
	}
	out, err := exec.Command("/proc/self/exe", "fcntl-try", args[0]).CombinedOutput()
	if err != nil {
		return fmt.Errorf("second process: %w: %s", err, out)
	}
	fmt.Println("fcntl ok")
	return nil
}

func fcntlTry(args []string) error {
	f, err := os.OpenFile(args[0], os.O_RDWR, 0)
	if err != nil {
		return err
	}
	held := unix.Flock_t{Type: unix.F_WRLCK, Start: 5, Len: 1}
	if err := unix.FcntlFlock(f.Fd(), unix.F_SETLK, &held); !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EACCES) {
		return fmt.Errorf("lock of a held record = %v, want %v", err, unix.EAGAIN)
	}
	free := unix.Flock_t{Type: unix.F_WRLCK, Start: 10, Len: 1}
	if err := unix.FcntlFlock(f.Fd(), unix.F_SETLK, &free); err != nil {
		return fmt.Errorf("lock of a free record: %w", err)
	}
	return nil
}

// tmpfile DIR makes a file without a name (O_TMPFILE), writes it and gives it the name DIR/named, as programs do that
// replace files in one step; like them it makes an ordinary file where the file system has no other.
func tmpfile(args []string) error {
	fd, err := unix.Open(args[0], unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if errors.Is(err, unix.EOPNOTSUPP) {
		fmt.Println("tmpfile unsupported")
		return os.WriteFile(args[0]+"/named", []byte("text"), 0o600)
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, []byte("text")); err != nil {
		return err
	}
	if err := unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, args[0]+"/named", unix.AT_SYMLINK_FOLLOW); err != nil {
		return fmt.Errorf("link: %w", err)
	}
	fmt.Println("tmpfile ok")
	return nil
}

// xattr FILE sets, reads, lists and removes a user attribute; one, user.kept, stays.
func xattr(args []string) error {
	const name = "user.boxlite.test"
	value := []byte("some value")
	if err := unix.Setxattr(args[0], name, value, unix.XATTR_CREATE); err != nil {
		return fmt.Errorf("set: %w", err)
	}
	buf := make([]byte, 256)
	n, err := unix.Getxattr(args[0], name, buf)
	if err != nil || !bytes.Equal(buf[:n], value) {
		return fmt.Errorf("get = %q, %v, want %q", buf[:max(n, 0)], err, value)
	}
	n, err = unix.Listxattr(args[0], buf)
	if err != nil || !bytes.Contains(buf[:n], []byte(name)) {
		return fmt.Errorf("list = %q, %v, want %s in it", buf[:max(n, 0)], err, name)
	}
	if err := unix.Removexattr(args[0], name); err != nil {
		return fmt.Errorf("remove: %w", err)
	}
	if _, err := unix.Getxattr(args[0], name, buf); !errors.Is(err, unix.ENODATA) {
		return fmt.Errorf("get after remove = %v, want %v", err, unix.ENODATA)
	}
	if err := unix.Setxattr(args[0], "user.kept", []byte("kept"), 0); err != nil {
		return fmt.Errorf("set user.kept: %w", err)
	}
	fmt.Println("xattr ok")
	return nil
}

// attributes FILE NAME... sets attributes and prints the names of all that the file then has.
func attributes(args []string) error {
	for _, name := range args[1:] {
		value := []byte("set inside")
		if name == "security.capability" {
			value = make([]byte, 20) // vfs_cap_data, version 2, without any
			value[3] = 2
		}
		if err := unix.Setxattr(args[0], name, value, 0); err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	buf := make([]byte, 4096)
	n, err := unix.Listxattr(args[0], buf)
	if err != nil {
		return err
	}
	names := strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00")
	slices.Sort(names)
	fmt.Println(strings.Join(names, " "))
	return nil
}

// many DIR N makes N files, then reads each.
func many(args []string) error {
	n, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	path := func(i int) string { return fmt.Sprintf("%s/%d", args[0], i) }
	for i := range n {
		if err := os.WriteFile(path(i), []byte("x"), 0o644); err != nil {
			return err
		}
	}
	for i := range n {
		if text, err := os.ReadFile(path(i)); err != nil || string(text) != "x" {
			return fmt.Errorf("%s: %q, %w", path(i), text, err)
		}
	}
	fmt.Println("many ok")
	return nil
}

// watched DIR N watches N files that many has made, says so and waits for the end of stdin.
func watched(args []string) error {
	n, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		return err
	}
	for i := range n {
		if _, err := unix.InotifyAddWatch(fd, fmt.Sprintf("%s/%d", args[0], i), unix.IN_MODIFY); err != nil {
			return err
		}
	}
	fmt.Println("watched ok")
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// watch PATH ... prints what inotify says of files, with the name in a directory, until it is ended.
func watch(paths []string) error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		return err
	}
	watched := map[int]string{}
	for _, path := range paths {
		wd, err := unix.InotifyAddWatch(fd, path, unix.IN_ALL_EVENTS&^(unix.IN_OPEN|unix.IN_ACCESS|unix.IN_CLOSE_NOWRITE))
		if err != nil {
			return &os.PathError{Op: "watch", Path: path, Err: err}
		}
		watched[wd] = path
	}
	fmt.Println("watching")
	buf := make([]byte, 64<<10)
	cookies := map[uint32]int{}
	for {
		n, err := unix.Read(fd, buf)
		if err != nil {
			return err
		}
		for b := buf[:n]; len(b) > 0; { // struct inotify_event, and a padded name
			field := func(i int) uint32 { return binary.NativeEndian.Uint32(b[4*i:]) }
			wd, mask, cookie, end := int(field(0)), field(1), field(2), unix.SizeofInotifyEvent+field(3)
			name, _, _ := bytes.Cut(b[unix.SizeofInotifyEvent:end], []byte{0})
			b = b[end:]
			pair := ""
			if cookie != 0 { // which two belong together
				if cookies[cookie] == 0 {
					cookies[cookie] = len(cookies) + 1
				}
				pair = fmt.Sprintf(" #%d", cookies[cookie])
			}
			fmt.Printf("%s %s%s\n", eventNames[mask], filepath.Join(watched[wd], string(name)), pair)
		}
	}
}

var eventNames = map[uint32]string{
	unix.IN_CREATE: "create", unix.IN_CREATE | unix.IN_ISDIR: "mkdir", unix.IN_DELETE: "delete", unix.IN_DELETE | unix.IN_ISDIR: "rmdir",
	unix.IN_MODIFY: "modify", unix.IN_CLOSE_WRITE: "close", unix.IN_ATTRIB: "attrib", unix.IN_ATTRIB | unix.IN_ISDIR: "attrib",
	unix.IN_MOVED_FROM: "from", unix.IN_MOVED_TO: "to", unix.IN_MOVE_SELF: "moved", unix.IN_DELETE_SELF: "deleted", unix.IN_IGNORED: "ignored",
}
