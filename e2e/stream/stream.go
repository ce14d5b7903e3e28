// Package stream generates and judges long deterministic byte streams. The end-to-end tests use it on the host and the
// probe uses it in the container, so that megabytes can be compared without keeping them. It is fast on an emulated CPU
// (a word at a time) and no cryptography: a byte that is lost, doubled or swapped changes the sum.
package stream

import (
	"encoding/binary"
	"fmt"
	"io"
	"math/bits"
)

// NewReader returns a reader of n bytes that depend on seed alone.
func NewReader(seed uint64, n int64) io.Reader {
	return &reader{state: seed, left: n}
}

type reader struct {
	state uint64
	left  int64
	word  [8]byte
	have  int // bytes of word not yet delivered, at its end
}

func (r *reader) next() uint64 {
	r.state += 0x9e3779b97f4a7c15
	z := r.state
	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9
	return z ^ (z >> 27)
}

func (r *reader) Read(p []byte) (int, error) {
	if r.left == 0 {
		return 0, io.EOF
	}
	if int64(len(p)) > r.left {
		p = p[:r.left]
	}
	n := 0
	for n < len(p) {
		if r.have == 0 && len(p)-n >= 8 {
			binary.LittleEndian.PutUint64(p[n:], r.next())
			n += 8
			continue
		}
		if r.have == 0 {
			binary.LittleEndian.PutUint64(r.word[:], r.next())
			r.have = 8
		}
		k := copy(p[n:], r.word[8-r.have:])
		r.have -= k
		n += k
	}
	r.left -= int64(n)
	return n, nil
}

// Hash sums what is written to it. Its zero value is ready to use; how the bytes are cut into writes does not matter.
type Hash struct {
	sum     uint64
	size    int64
	pending [8]byte
	have    int
}

func (h *Hash) mix(w uint64) {
	h.sum = bits.RotateLeft64(h.sum^w, 27)*0x9fb21c651e98df25 + 0x52dce729
}

// Write never fails.
func (h *Hash) Write(p []byte) (int, error) {
	n := len(p)
	h.size += int64(n)
	if h.have > 0 {
		k := copy(h.pending[h.have:], p)
		h.have += k
		p = p[k:]
		if h.have < 8 {
			return n, nil
		}
		h.mix(binary.LittleEndian.Uint64(h.pending[:]))
		h.have = 0
	}
	for len(p) >= 8 {
		h.mix(binary.LittleEndian.Uint64(p))
		p = p[8:]
	}
	h.have = copy(h.pending[:], p)
	return n, nil
}

// String gives the number of bytes and their sum.
func (h *Hash) String() string {
	end := *h
	var last [8]byte
	copy(last[:], end.pending[:end.have])
	end.mix(binary.LittleEndian.Uint64(last[:]))
	return fmt.Sprintf("%d bytes, sum %016x", end.size, end.sum)
}

// Sum reads r to its end.
func Sum(r io.Reader) (string, error) {
	var h Hash
	// Without a WriterTo or ReaderFrom in the way, CopyBuffer uses this buffer.
	_, err := io.CopyBuffer(struct{ io.Writer }{&h}, struct{ io.Reader }{r}, make([]byte, 256<<10))
	return h.String(), err
}
