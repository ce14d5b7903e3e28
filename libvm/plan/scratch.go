package plan

import (
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// AnnotationScratch is PATH=SIZE: the container gets an ext4 file system of that
// size (with a suffix M, G or T) at that path, on a disk of its own. The disk is
// empty at each create and gone with the container. See Scratch.
const AnnotationScratch = "boxlite.scratch"

// Scratch is a disk that lives as long as the VM. It can hold the upper layer of an
// overlay, which a share cannot, or only slowly.
type Scratch struct {
	Path    string // of its mount, absolute
	SizeMiB int64
}

// guestScratch is the guest's node of the scratch disk, its only disk.
const guestScratch = "/dev/vda"

// parseScratch reads a value of the annotation or the flag.
func parseScratch(text string) (*Scratch, error) {
	bad := func(err error) error {
		return fmt.Errorf("scratch disk %q: %w: want PATH=SIZE as in /var/lib/docker=20G", text, err)
	}
	where, size, ok := strings.Cut(text, "=")
	if !ok || !path.IsAbs(where) || path.Clean(where) == "/" {
		return nil, bad(errors.New("no absolute path below /"))
	}
	shift := map[string]int{"M": 0, "G": 10, "T": 20}
	unit := size[max(len(size)-1, 0):]
	n, err := strconv.ParseInt(strings.TrimSuffix(size, unit), 10, 32)
	if _, known := shift[unit]; !known || err != nil || n <= 0 {
		return nil, bad(fmt.Errorf("size %q", size))
	}
	s := &Scratch{Path: path.Clean(where), SizeMiB: n << shift[unit]}
	if s.SizeMiB < minScratchMiB || s.SizeMiB > maxScratchMiB {
		return nil, bad(fmt.Errorf("%d MiB, not of %d to %d", s.SizeMiB, minScratchMiB, maxScratchMiB))
	}
	return s, nil
}

const (
	minScratchMiB = 16
	maxScratchMiB = 16 << 20 // what ext4 holds with blocks of 4 KiB
)

// scratch adds the mount of the scratch disk, if one is asked for. What
// config.json mounts there stays: a volume is a volume.
func (p *Plan) scratch(annotation, flag string) error {
	text := flag
	if text == "" {
		text = annotation
	}
	if text == "" {
		return nil
	}
	s, err := parseScratch(text)
	if err != nil {
		return err
	}
	for _, m := range p.Guest.Mounts {
		if path.Clean(m.Destination) == s.Path {
			p.Warnf("no scratch disk at %s: something is mounted there", s.Path)
			return nil
		}
	}
	p.Scratch = s
	p.Guest.Mounts = append(p.Guest.Mounts, specs.Mount{Destination: s.Path, Type: "ext4", Source: guestScratch, Options: []string{"discard"}})
	return nil
}
