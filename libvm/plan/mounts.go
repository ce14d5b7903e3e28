package plan

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
)

// MakesNodes says whether device nodes are made in the share. They are if the
// container has CAP_MKNOD, and so can make some. They also are if /dev/null and the
// other standard nodes, or a node of config.json, lie in the share and not in a
// file system of the guest's own.
func MakesNodes(guest *specs.Spec) bool {
	if slices.Contains(allCapabilities(guest.Process), "CAP_MKNOD") {
		return true
	}
	nodes := []string{"/dev/null"} // and others beside it, in every container
	if guest.Linux != nil {
		for _, d := range guest.Linux.Devices {
			if d.Type != "p" {
				nodes = append(nodes, path.Join("/", d.Path))
			}
		}
	}
	return slices.ContainsFunc(nodes, func(node string) bool { return sharesPath(guest.Mounts, node) })
}

// sharesPath says whether a path of the container's is in the share: below none of
// its mounts, or below a bind mount nearest.
func sharesPath(mounts []specs.Mount, file string) bool {
	nearest, shared := "", true
	for _, m := range mounts {
		dest := path.Join("/", m.Destination)
		if below(file, dest) && len(dest) >= len(nearest) { // a later mount covers an earlier one
			nearest, shared = dest, isBind(&m)
		}
	}
	return shared
}

// below says whether a path is dir or below it; both are clean.
func below(file, dir string) bool {
	return file == dir || strings.HasPrefix(file, strings.TrimSuffix(dir, "/")+"/")
}

func (p *Plan) root(rootfs string, host *HostFacts) {
	p.Guest.Root.Path = p.GuestPath(Bind{Name: RootfsName})
	// The rootfs is shared writable even where root.readonly is set: mount
	// points that are missing have to be made in it (as runc makes them). The
	// guest mounts it read-only for the container.
	p.Binds = append(p.Binds, Bind{Name: RootfsName, Source: rootfs, Recursive: true, Submounts: host.RootSubmounts})
}

// mounts gives every bind mount a place in the share and turns the mounts that
// describe the host's kernel into the guest's own.
func (p *Plan) mounts(host *HostFacts) error {
	p.uniteCgroups()
	var left []string
	for i := range p.Guest.Mounts {
		m := &p.Guest.Mounts[i]
		if m.Type == "cgroup" && !isBind(m) {
			m.Type = "cgroup2" // the guest has no v1 hierarchies, whatever the host has
			m.Source = "cgroup"
			continue
		}
		if m.Type == "overlay" && !isBind(m) {
			if err := p.overlay(m); err != nil {
				return err
			}
			continue
		}
		if !isBind(m) {
			continue
		}
		src, ok := host.Sources[m.Source]
		if !ok {
			return fmt.Errorf("mount %s: source %s was not looked at", m.Destination, m.Source)
		}
		if _, known := devicesOf(p.Shape.Kernel)[m.Source]; src.Kind == SourceDevice && !known && host.UserNamespace {
			// What podman --privileged and --device mean where no node can be made.
			left = append(left, m.Source)
			continue
		}
		if src.Kind == SourceSocket && p.hostSocket(m, src) {
			continue
		}
		if err := p.bind(m, src); err != nil {
			return err
		}
	}
	if len(left) > 0 {
		p.leaveDevices(left)
		p.Guest.Mounts = slices.DeleteFunc(p.Guest.Mounts, func(m specs.Mount) bool { return isBind(&m) && slices.Contains(left, m.Source) })
	}
	return nil
}

// uniteCgroups takes binds of single hierarchies of cgroup v1 out, which Podman has
// for systemd to write in where the host has such: the guest's only hierarchy
// becomes writable in their place.
func (p *Plan) uniteCgroups() {
	const root = "/sys/fs/cgroup"
	hierarchy := func(m specs.Mount) bool {
		return isBind(&m) && strings.HasPrefix(m.Source, root+"/") && strings.HasPrefix(m.Destination, root+"/")
	}
	if !slices.ContainsFunc(p.Guest.Mounts, hierarchy) {
		return
	}
	p.Guest.Mounts = slices.DeleteFunc(p.Guest.Mounts, hierarchy)
	for i := range p.Guest.Mounts {
		if m := &p.Guest.Mounts[i]; m.Type == "cgroup" {
			m.Options = append(m.Options, "rw")
		}
	}
}

func (p *Plan) leaveDevices(paths []string) {
	slices.Sort(paths)
	p.Warnf("devices of the host that no VM has are left out: %s", strings.Join(slices.Compact(paths), " "))
}

func (p *Plan) bind(m *specs.Mount, src Source) error {
	switch src.Kind {
	case SourceMissing:
		return fmt.Errorf("mount %s: source %s: no such file or directory", m.Destination, m.Source)
	case SourceGuest:
		if inTracingDirs(src.GuestPath) && !p.hasTracing() {
			return fmt.Errorf("mount %s: the VM has the kernel %s, and only full has %s (make install-kernel-full; annotation %s=full)",
				m.Destination, p.Shape.Kernel, src.GuestPath, AnnotationKernel)
		}
		m.Source = src.GuestPath
		return nil
	case SourceShm:
		if _, joined := p.Joins[specs.IPCNamespace]; joined {
			p.joinShm(m)
			return nil
		}
		// A tmpfs of the host's for shared memory (podman, docker's shareable
		// ipc): shared memory over a network file system would be neither.
		m.Type, m.Source = "tmpfs", "shm"
		m.Options = []string{"nosuid", "noexec", "nodev", "mode=1777", "size=" + strconv.FormatUint(src.SizeBytes, 10)}
		return nil
	case SourceDevice:
		if _, known := devicesOf(p.Shape.Kernel)[m.Source]; !known {
			return fmt.Errorf("mount %s: device %s is the host's and cannot be shown in a VM", m.Destination, m.Source)
		}
		return nil // the guest's own node of that path
	}
	b := Bind{
		Source:    src.Path,
		Recursive: slices.Contains(m.Options, "rbind"),
		File:      src.Kind == SourceFile || src.Kind == SourceSocket,
		Submounts: src.Submounts,
	}
	b.ReadOnly, b.ReadOnlyBelow = readOnly(m.Options)
	follows, err := p.follows(m.Options)
	if err != nil {
		return fmt.Errorf("mount %s: %w", m.Destination, err)
	}
	b.Follows = follows && !b.File
	if p.Member != "" && src.Kind == SourceDirectory {
		p.volume(&b, src)
	}
	p.share(m, b)
	return nil
}

// follows says whether the host's later mounts reach a bind with such options. Without
// a word of its own a bind has the propagation of the root, which is slave if
// linux.rootfsPropagation does not say otherwise, as in runc.
func (p *Plan) follows(options []string) (bool, error) {
	propagation := "rslave"
	if l := p.Guest.Linux; l != nil && l.RootfsPropagation != "" {
		propagation = l.RootfsPropagation
	}
	for _, o := range options {
		switch o {
		case "private", "rprivate", "unbindable", "runbindable", "slave", "rslave":
			propagation = o
		case "shared", "rshared":
			return false, fmt.Errorf("propagation %s: what is mounted in a VM cannot show on the host: use rslave", o)
		}
	}
	return !slices.Contains([]string{"private", "rprivate", "unbindable", "runbindable"}, propagation), nil
}

// relativeLayer matches an option of an overlay with a path that is relative.
// Colons separate those of lowerdir, unless escaped.
var relativeLayer = regexp.MustCompile(`^(lowerdir=(.*[^\\]:)?|upperdir=|workdir=)[^/:]`)

// overlay leaves the making of the mount to the host, and has the guest bind it.
// The directories of every overlay in config.json are the host's, as with runc:
// who writes it can know none of the guest's.
func (p *Plan) overlay(m *specs.Mount) error {
	words := MountOptions()
	var forHost []string
	forGuest := []string{"bind"}
	for _, o := range m.Options {
		if relativeLayer.MatchString(o) {
			return fmt.Errorf("mount %s: overlay option %q: want absolute paths", m.Destination, o)
		}
		if slices.Contains(words, o) {
			forGuest = append(forGuest, o)
		} else {
			forHost = append(forHost, o)
		}
	}
	if !slices.ContainsFunc(forHost, func(o string) bool { return strings.HasPrefix(o, "lowerdir") }) {
		return fmt.Errorf("mount %s: an overlay without lowerdir", m.Destination)
	}
	m.Type, m.Options = "bind", forGuest
	b := Bind{Source: m.Destination, Overlay: strings.Join(forHost, ",")}
	b.ReadOnly, _ = readOnly(forGuest)
	p.share(m, b)
	return nil
}

// share gives b a name in the share, and the guest's mount that as its source.
func (p *Plan) share(m *specs.Mount, b Bind) {
	b.Name = path.Join("mounts", strconv.Itoa(len(p.Binds)-1))
	p.Binds = append(p.Binds, b)
	m.Source = p.GuestPath(b)
}

// GuestPath is where the guest finds what a bind shows.
func (p *Plan) GuestPath(b Bind) string {
	name := b.Name
	switch {
	case b.Volume != "":
		name = guestproto.VolumeName(b.Volume)
	case p.Member != "":
		name = path.Join(guestproto.MemberName(p.Member), name)
	}
	return path.Join(guestproto.ShareDir, name)
}

// isBind follows runc: the options decide, whatever the type says.
func isBind(m *specs.Mount) bool {
	return m.Type == "bind" || slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind")
}
