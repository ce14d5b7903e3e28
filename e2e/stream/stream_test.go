package stream

import (
	"bytes"
	"io"
	"testing"
	"testing/iotest"
)

func TestSumIgnoresHowBytesAreCut(t *testing.T) {
	whole, err := io.ReadAll(NewReader(7, 4099))
	if err != nil || len(whole) != 4099 {
		t.Fatalf("ReadAll = %d bytes, %v, want 4099, nil", len(whole), err)
	}
	slow, err := io.ReadAll(iotest.OneByteReader(NewReader(7, 4099)))
	if err != nil || !bytes.Equal(slow, whole) {
		t.Fatalf("byte by byte the stream differs (%v)", err)
	}
	want, _ := Sum(bytes.NewReader(whole))
	if got, _ := Sum(iotest.OneByteReader(bytes.NewReader(whole))); got != want {
		t.Errorf("Sum byte by byte = %s, want %s", got, want)
	}
}

func TestSumSeesDamage(t *testing.T) {
	data, _ := io.ReadAll(NewReader(1, 1003))
	want, _ := Sum(bytes.NewReader(data))
	damaged := map[string][]byte{
		"flipped": append(append([]byte{}, data[:500]...), append([]byte{data[500] ^ 1}, data[501:]...)...),
		"lost":    append(append([]byte{}, data[:500]...), data[501:]...),
		"doubled": append(append([]byte{}, data[:500]...), data[499:]...),
		"cut":     data[:1002],
		"swapped": append(append(append([]byte{}, data[8:16]...), data[:8]...), data[16:]...),
		"zero":    append(append([]byte{}, data...), 0),
	}
	for name, d := range damaged {
		if got, _ := Sum(bytes.NewReader(d)); got == want {
			t.Errorf("%s: Sum = %s, the same as of the undamaged stream", name, got)
		}
	}
}
