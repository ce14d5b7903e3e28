package plan

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"github.com/moby/sys/userns"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// HostFacts is everything that Rewrite may know of the host.
type HostFacts struct {
	// UID and GID are what create runs as: not 0 for an ordinary user.
	UID, GID uint32
	// UserNamespace says that create runs in one, where nobody can make device
	// nodes.
	UserNamespace bool
	// CPUs is how many processors the host has.
	CPUs int
	// MemoryMiB is what the host has, zero if that is not known.
	MemoryMiB int
	// KernelParameters are those that the guest takes over, by their path below
	// /proc/sys.
	KernelParameters map[string]string
	// WithheldCapabilities are those that the caller cannot give to anyone.
	WithheldCapabilities map[string]bool
	// Rlimits are those that the container's process inherits, see CallersRlimits.
	Rlimits []specs.POSIXRlimit
	// Sources describes the source of every bind mount, by its path in the spec.
	Sources map[string]Source
	// RootSubmounts are mounts below a rootfs that shall be read-only, see
	// Bind.Submounts.
	RootSubmounts []string
	// Devices holds the devices of linux.devices that exist on the host, by
	// type and number, as in "b8:0".
	Devices map[string]bool
	// FullKernel says that the kernel full is there to be chosen: it is installed, and no
	// pod has another already.
	FullKernel bool
	// Pod is the VM that the container joins; nil for one of its own.
	Pod *Pod
	// PodMemoryLimit is that of the cgroup around the sandbox of a pod, in bytes. It is
	// zero for other containers.
	PodMemoryLimit int64
	// PodCPUs is how many processors that cgroup may use. Zero is no limit.
	PodCPUs int
}

// mayExceedLimits says that create has CAP_SYS_RESOURCE.
func (f *HostFacts) mayExceedLimits() bool {
	return f.UID == 0 && !f.UserNamespace && !f.WithheldCapabilities["CAP_SYS_RESOURCE"]
}

// Source is what the host has where a bind mount's source points.
type Source struct {
	Kind SourceKind
	// Path is absolute; a relative one in the spec starts at the bundle.
	Path string
	// GuestPath is the guest's own counterpart, for SourceGuest.
	GuestPath string
	// SizeBytes is the size of the file system, for SourceShm.
	SizeBytes uint64
	// Socket is what a SourceSocket takes.
	Socket SocketKind
	// Submounts are mounts below a SourceDirectory, see Bind.Submounts.
	Submounts []string
	// Device and Inode are those of a SourceDirectory.
	Device, Inode uint64
}

// SourceKind says how a bind mount's source gets into the guest.
type SourceKind int

// The kinds of source.
const (
	SourceMissing   SourceKind = iota
	SourceDirectory            // shared
	SourceFile                 // shared; fifos too, which then show as inodes
	SourceDevice               // a character or block device
	SourceGuest                // a path of proc, sysfs, debugfs, tracefs or devtmpfs: the guest has its own
	SourceShm                  // a tmpfs at /dev/shm
	SourceSocket               // a unix socket
)

// LookAtHost looks at everything that spec mentions.
func LookAtHost(spec *specs.Spec, bundle string) (*HostFacts, error) {
	f := &HostFacts{
		UID: uint32(os.Geteuid()), GID: uint32(os.Getegid()), UserNamespace: userns.RunningInUserNS(),
		CPUs: runtime.NumCPU(), MemoryMiB: hostMemoryMiB(), KernelParameters: kernelParameters("/proc"), Rlimits: CallersRlimits(),
		WithheldCapabilities: withheldCapabilities(),
		Sources:              map[string]Source{}, Devices: map[string]bool{},
	}
	for i := range spec.Mounts {
		m := &spec.Mounts[i]
		if !isBind(m) {
			continue
		}
		src, err := lookAt(m.Source, m.Destination, bundle)
		if err != nil {
			return nil, fmt.Errorf("mount %s: %w", m.Destination, err)
		}
		if before, ok := f.Sources[m.Source]; ok {
			src.Submounts = before.Submounts
		}
		if src.Kind == SourceDirectory && src.Submounts == nil && reachesTopOnly(m.Options) {
			src.Submounts = submountsOf(src.Path)
		}
		f.Sources[m.Source] = src
	}
	if spec.Root != nil && spec.Root.Readonly {
		if rootfs, err := Rootfs(spec, bundle); err == nil {
			f.RootSubmounts = submountsOf(rootfs)
		}
	}
	if spec.Linux == nil {
		return f, nil
	}
	for _, d := range spec.Linux.Devices {
		class := "char"
		if d.Type == "b" {
			class = "block"
		}
		if _, err := os.Stat(fmt.Sprintf("/sys/dev/%s/%d:%d", class, d.Major, d.Minor)); err == nil {
			f.Devices[deviceKey(d)] = true
		}
	}
	return f, nil
}

// hostMemoryMiB counts swap too.
func hostMemoryMiB() int {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return 0
	}
	return int(uint64(info.Totalram+info.Totalswap) * uint64(info.Unit) >> 20)
}

func lookAt(source, destination, bundle string) (Source, error) {
	src := Source{Path: source}
	if !filepath.IsAbs(source) {
		src.Path = filepath.Join(bundle, source)
	}
	st, err := os.Stat(src.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return src, nil
	}
	if err != nil {
		return src, err
	}
	var sfs unix.Statfs_t
	if err := unix.Statfs(src.Path, &sfs); err != nil {
		return src, fmt.Errorf("statfs %s: %w", src.Path, err)
	}
	switch {
	case sfs.Type == unix.PROC_SUPER_MAGIC, sfs.Type == unix.SYSFS_MAGIC, sfs.Type == unix.DEBUGFS_MAGIC, sfs.Type == unix.TRACEFS_MAGIC,
		sfs.Type == unix.CGROUP_SUPER_MAGIC, sfs.Type == unix.CGROUP2_SUPER_MAGIC:
		src.Kind, src.GuestPath = SourceGuest, guestCounterpart(src.Path)
	case st.Mode()&fs.ModeDevice != 0:
		src.Kind = SourceDevice
	case st.Mode()&fs.ModeSocket != 0:
		src.Kind = SourceSocket
		src.Socket, err = probeSocket(src.Path)
		return src, err
	case st.IsDir() && filepath.Clean(src.Path) == "/dev":
		src.Kind, src.GuestPath = SourceGuest, "/dev"
	case st.IsDir() && destination == "/dev/shm" && sfs.Type == unix.TMPFS_MAGIC:
		src.Kind, src.SizeBytes = SourceShm, sfs.Blocks*uint64(sfs.Bsize)
	case st.IsDir():
		src.Kind = SourceDirectory
		if sys, ok := st.Sys().(*syscall.Stat_t); ok {
			src.Device, src.Inode = sys.Dev, sys.Ino
		}
	default:
		src.Kind = SourceFile
	}
	return src, nil
}

// guestCounterpart maps a path on the host's kernel file systems to the
// guest's. Cgroup hierarchies of the host have one counterpart: the guest's
// single one.
func guestCounterpart(path string) string {
	path = filepath.Clean(path)
	if path == "/sys/fs/cgroup" || strings.HasPrefix(path, "/sys/fs/cgroup/") {
		return "/sys/fs/cgroup"
	}
	return path
}
