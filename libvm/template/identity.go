package template

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// formatVersion is raised when the files of a template change their meaning, or
// what is done to a VM before it is saved.
const formatVersion = 3

// Identity is everything that shapes a saved VM. Two VMs may be copies of one
// template if and only if their identities are equal.
type Identity struct {
	Format int `json:"format"`
	// Boot is the boot id of the host's kernel. With it a template ends with
	// the boot it was made in: the processor's features, its TSC's frequency
	// and the host's KVM cannot have changed under it.
	Boot string `json:"boot"`
	// Args are QEMU's.
	Args []string `json:"args"`
	// Files are QEMU and what it reads to start the VM.
	Files []File `json:"files"`
	// Kernel, VCPUs, MemoryMiB and Accel tell people what it is; Args say the
	// same to QEMU.
	Kernel    string `json:"kernel"`
	VCPUs     int    `json:"vcpus"`
	MemoryMiB int    `json:"memoryMiB"`
	Accel     string `json:"accel"`
}

// File is one version of a file. A program cannot set the time of a file's last
// change (ctime). So a file that is replaced or written is another version, even if
// its name, size and date are the same. Checksums of all files would cost more time
// than a start from a template takes.
type File struct {
	Path    string `json:"path"`
	Device  uint64 `json:"device"`
	Inode   uint64 `json:"inode"`
	Size    int64  `json:"size"`
	Changed int64  `json:"changed"` // nanoseconds since 1970
}

// LookAt returns the version of a file that is there now.
func LookAt(path string) (File, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return File{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return File{Path: path, Device: st.Dev, Inode: st.Ino, Size: st.Size, Changed: st.Ctim.Nano()}, nil
}

// NewIdentity completes id with the format, the boot id and the versions of the
// files, of which empty names are left out.
func NewIdentity(id Identity, files ...string) (Identity, error) {
	boot, err := bootID()
	if err != nil {
		return id, err
	}
	id.Format, id.Boot = formatVersion, boot
	for _, path := range files {
		if path == "" {
			continue
		}
		f, err := LookAt(path)
		if err != nil {
			return id, err
		}
		id.Files = append(id.Files, f)
	}
	return id, nil
}

func bootID() (string, error) {
	raw, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("boot id of the host: %w", err)
	}
	return strings.TrimSpace(string(raw)), nil
}

// Key names the template of an identity.
func (id Identity) Key() string {
	raw, err := json.Marshal(id)
	if err != nil {
		panic(err) // strings and numbers marshal
	}
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:8])
}

// outdated says that no VM can have this identity any more: the host was
// started anew, or one of the files has changed.
func (id Identity) outdated(boot string) bool {
	if id.Format != formatVersion || id.Boot != boot {
		return true
	}
	for _, f := range id.Files {
		if now, err := LookAt(f.Path); err != nil || now != f {
			return true
		}
	}
	return false
}
