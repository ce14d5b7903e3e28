package template

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// extent is a part of a VM's memory that is not zero, in bytes. A saved memory
// file is its extents one after the other and nothing else: it needs no file
// system that knows holes, and a part that is missing shows in the size.
type extent struct {
	Offset int64 `json:"o"`
	Length int64 `json:"l"`
}

// Pages that are zero are left out; they are holes in the memory of a new VM.
// Memory is moved in pieces of chunk bytes.
const (
	pageSize = 4096
	chunk    = 256 << 10
)

// castagnoli is the polynomial that processors have an instruction for: the
// checksum of a whole template costs a few milliseconds. It is there to find
// damage; a template that somebody else could have written is told by its
// owner and mode.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// saveMemory writes to w what is not zero of memory, a sparse file.
func saveMemory(w io.Writer, memory *os.File) (extents []extent, sum uint32, err error) {
	fd := int(memory.Fd())
	buf := make([]byte, chunk)
	for offset := int64(0); ; {
		start, err := unix.Seek(fd, offset, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return extents, sealExtents(sum, extents), nil // holes up to the end
		}
		if err != nil {
			return nil, 0, fmt.Errorf("find the data in the VM's memory: %w", err)
		}
		end, err := unix.Seek(fd, start, unix.SEEK_HOLE)
		if err != nil {
			return nil, 0, fmt.Errorf("find the holes in the VM's memory: %w", err)
		}
		for offset = start; offset < end; {
			piece := buf[:min(chunk, end-offset)]
			if _, err := memory.ReadAt(piece, offset); err != nil {
				return nil, 0, fmt.Errorf("read the VM's memory: %w", err)
			}
			for _, run := range runs(piece) {
				data := piece[run.Offset:][:run.Length]
				if _, err := w.Write(data); err != nil {
					return nil, 0, err
				}
				sum = crc32.Update(sum, castagnoli, data)
				extents = appendExtent(extents, extent{offset + run.Offset, run.Length})
			}
			offset += int64(len(piece))
		}
	}
}

var zeroPage [pageSize]byte

// runs lists the stretches of pages in data that are not zero.
func runs(data []byte) []extent {
	var out []extent
	for at := 0; at < len(data); at += pageSize {
		page := data[at:min(at+pageSize, len(data))]
		if !bytes.Equal(page, zeroPage[:len(page)]) {
			out = appendExtent(out, extent{int64(at), int64(len(page))})
		}
	}
	return out
}

// appendExtent joins an extent to the last one where it follows at once.
func appendExtent(list []extent, e extent) []extent {
	if n := len(list); n > 0 && list[n-1].Offset+list[n-1].Length == e.Offset {
		list[n-1].Length += e.Length
		return list
	}
	return append(list, e)
}

// loadMemory writes the extents from r to their places in memory and returns
// the checksum of all that was written and of where.
func loadMemory(memory io.WriterAt, r io.Reader, extents []extent) (sum uint32, err error) {
	buf := make([]byte, chunk)
	for _, e := range extents {
		for done := int64(0); done < e.Length; {
			piece := buf[:min(chunk, e.Length-done)]
			if _, err := io.ReadFull(r, piece); err != nil {
				return 0, fmt.Errorf("read: %w", err)
			}
			sum = crc32.Update(sum, castagnoli, piece)
			if _, err := memory.WriteAt(piece, e.Offset+done); err != nil {
				return 0, fmt.Errorf("write the VM's memory: %w", err)
			}
			done += int64(len(piece))
		}
	}
	return sealExtents(sum, extents), nil
}

// sealExtents adds to the checksum of the data the places where it belongs.
func sealExtents(sum uint32, extents []extent) uint32 {
	var raw []byte
	for _, e := range extents {
		raw = binary.LittleEndian.AppendUint64(raw, uint64(e.Offset))
		raw = binary.LittleEndian.AppendUint64(raw, uint64(e.Length))
	}
	return crc32.Update(sum, castagnoli, raw)
}

// checkExtents returns how many bytes the extents have together. They must be
// in order and within a memory of size bytes.
func checkExtents(extents []extent, size int64) (total int64, err error) {
	end := int64(0)
	for _, e := range extents {
		if e.Offset < end || e.Length <= 0 || e.Length > size-e.Offset {
			return 0, fmt.Errorf("extent of %d bytes at %d in a memory of %d", e.Length, e.Offset, size)
		}
		end = e.Offset + e.Length
		total += e.Length
	}
	return total, nil
}
